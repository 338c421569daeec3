"""Who decides what is launched."""

from __future__ import annotations

import importlib.util

import pytest
from queue_samples import PROFILE, SPACE

from kvray.analysis.bayesian import BayesianSampler
from kvray.analysis.sampler import EveryCandidate
from kvray.config import SearchStrategy
from kvray.errors import EngineError
from kvray.sweep.optuna import OptunaSampler
from kvray.sweep.samplers import check_search, make_sampler


@pytest.mark.parametrize(
    ("search", "kind"),
    [
        (SearchStrategy.MODEL, BayesianSampler),
        (SearchStrategy.GRID, EveryCandidate),
        (SearchStrategy.ASHA, EveryCandidate),
        (SearchStrategy.OPTUNA, OptunaSampler),
    ],
)
def test_each_search_has_its_own_and_launches_the_baseline_first(search: SearchStrategy, kind: type) -> None:
    sampler = make_sampler(search, SPACE, PROFILE, {}, seed=0)
    assert type(sampler) is kind
    assert sampler.proposal() == SPACE[0]


def test_optuna_is_asked_for_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    check_search(SearchStrategy.OPTUNA)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_search(SearchStrategy.MODEL)
    with pytest.raises(EngineError, match=r"Optuna is not installed\. Install it with pip install 'kvray\[optuna\]'"):
        check_search(SearchStrategy.OPTUNA)


def test_what_optuna_proposes_is_launched_once_each_and_in_the_same_order_for_the_same_answers() -> None:
    def task(seed: int) -> list[str]:
        sampler, found = make_sampler(SearchStrategy.OPTUNA, SPACE, PROFILE, {}, seed=seed), []
        while (candidate := sampler.proposal()) is not None:
            found.append(candidate.candidate_id)
            sampler.launched(candidate.candidate_id)
            sampler.ended(candidate.candidate_id, failed=False, seconds=1.0)
        return found

    assert sorted(task(1)) == sorted(candidate.candidate_id for candidate in SPACE)
    assert task(1) == task(1)
