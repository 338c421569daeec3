from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from kvray.config import TuneConfig
from kvray.engines.offline import OFFLINE_ENVIRONMENT, is_offline_environment, offline_environment
from kvray.tuning.resolved import requested_model


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OFFLINE_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


def test_the_environment_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    before = dict(os.environ)
    with offline_environment(enabled=True):
        assert {name: os.environ[name] for name in OFFLINE_ENVIRONMENT} == OFFLINE_ENVIRONMENT
    assert dict(os.environ) == before


def test_nothing_is_set_where_nobody_asks_for_it() -> None:
    before = dict(os.environ)
    with offline_environment(enabled=False):
        assert dict(os.environ) == before


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_the_users_own_environment_asks_for_all_of_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "true")
    with offline_environment(enabled=False):
        assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize("was", [False, True])
def test_a_hub_client_that_was_imported_before_is_told_and_told_back(
    was: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = SimpleNamespace(HF_HUB_OFFLINE=was)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    with offline_environment(enabled=True):
        assert constants.HF_HUB_OFFLINE
    assert constants.HF_HUB_OFFLINE is was


def test_a_client_that_is_imported_meanwhile_is_told_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "huggingface_hub.constants", raising=False)
    constants = SimpleNamespace(HF_HUB_OFFLINE=True)
    with offline_environment(enabled=True):
        monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("environment", ["", "1"])
@pytest.mark.parametrize("option", [False, True])
def test_option_and_environment_each_forbid_the_network(
    option: bool, environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", environment)
    config = TuneConfig(model_id="fake:ok", profile="ci-micro", offline=option)
    assert requested_model(config, "fake").offline is (option or environment == "1")
    assert is_offline_environment() is (environment == "1")
