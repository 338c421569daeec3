"""The store contract on a local folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_contract import StoreContract


class TestLocalStore(StoreContract):
    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        return str(tmp_path / "new" / "results")
