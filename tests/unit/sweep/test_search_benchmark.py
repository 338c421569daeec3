"""The replays of `benchmarks/search_cost.py` speak to today's queue, scheduler and search."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def test_a_search_is_replayed_on_a_made_up_landscape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    landscapes, search_cost = (importlib.import_module(name) for name in ("landscapes", "search_cost"))
    landscape = landscapes.make_landscape(replace(landscapes.ORDINARY, size=24), 0)
    outcome = search_cost.run_method("kvray", landscape, 0, None)
    assert outcome.launched < 24
    assert 0 < outcome.share < 1
