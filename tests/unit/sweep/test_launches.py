"""Who decides what is launched."""

from __future__ import annotations

import importlib.util

import pytest
from course_samples import PROFILE, SPACE

from kvray.analysis.axis_search import AxisSearch
from kvray.analysis.launching import EveryCandidate
from kvray.config import SearchStrategy
from kvray.errors import EngineError
from kvray.sweep.launches import check_search, make_launches
from kvray.sweep.optuna import OptunaLaunches


@pytest.mark.parametrize(
    ("search", "kind"),
    [
        (SearchStrategy.MODEL, AxisSearch),
        (SearchStrategy.GRID, EveryCandidate),
        (SearchStrategy.ASHA, EveryCandidate),
        (SearchStrategy.OPTUNA, OptunaLaunches),
    ],
)
def test_each_search_has_its_own_and_launches_the_baseline_first(search: SearchStrategy, kind: type) -> None:
    launches = make_launches(search, SPACE, PROFILE, {}, seed=0)
    assert type(launches) is kind
    assert launches.proposal() == SPACE[0]


def test_optuna_is_asked_for_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    check_search(SearchStrategy.OPTUNA)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_search(SearchStrategy.MODEL)
    with pytest.raises(EngineError, match=r"Optuna is not installed\. Install it with pip install 'kvray\[optuna\]'"):
        check_search(SearchStrategy.OPTUNA)


def test_what_optuna_proposes_is_launched_once_each_and_in_the_same_order_for_the_same_answers() -> None:
    def order(seed: int) -> list[str]:
        launches, found = make_launches(SearchStrategy.OPTUNA, SPACE, PROFILE, {}, seed=seed), []
        while (candidate := launches.proposal()) is not None:
            found.append(candidate.candidate_id)
            launches.launched(candidate.candidate_id)
            launches.ended(candidate.candidate_id, failed=False, seconds=1.0)
        return found

    assert sorted(order(1)) == sorted(candidate.candidate_id for candidate in SPACE)
    assert order(1) == order(1)
