from __future__ import annotations

import pytest

from kvray.testing.engine_contract import EngineContract


class TestFakeEngine(EngineContract):
    """Its model has a shape, so that its candidates are forecast."""

    engine = "fake"
    missing_model = "not-a-fake"

    @pytest.fixture
    def model_id(self) -> str:
        return "fake:sized"


class TestFakeEngineThatTellsTheMostProbableTokensOnly(EngineContract):
    """The empty label part is in every candidate's."""

    engine = "fake"
    missing_model = "not-a-fake"

    @pytest.fixture
    def model_id(self) -> str:
        return "fake:=topk"


class TestFakeEngineWithAServer(EngineContract):
    """The model lives in a second process."""

    engine = "fake"
    missing_model = "not-a-fake"

    @pytest.fixture
    def model_id(self) -> str:
        return "fake:=server"
