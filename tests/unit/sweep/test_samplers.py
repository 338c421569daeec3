"""Who decides what is launched."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from queue_samples import PROFILE, SPACE

from kvray.analysis.aggregate import Metrics
from kvray.analysis.bayesian import BayesianSampler
from kvray.analysis.sampler import EveryCandidate
from kvray.candidate import Candidate, DeviceType
from kvray.config import SearchStrategy
from kvray.engines.base import DeviceFacts
from kvray.errors import EngineError
from kvray.space.axis import Axis, AxisKind
from kvray.sweep.optuna import OptunaSampler
from kvray.sweep.samplers import check_search, make_sampler
from kvray.testing.fake import FakeAdapter
from kvray.testing.fake_axes import speed_factor


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
    sampler = make_sampler(search, SPACE, PROFILE, {}, axes=(), seed=0)
    assert type(sampler) is kind
    assert sampler.proposal() == SPACE[0]


def test_optuna_is_asked_for_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    check_search(SearchStrategy.OPTUNA)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_search(SearchStrategy.MODEL)
    with pytest.raises(EngineError, match=r"Optuna is not installed\. Install it: .* -m pip install .*\[optuna\]"):
        check_search(SearchStrategy.OPTUNA)


def test_what_optuna_proposes_is_launched_once_each_and_in_the_same_order_for_the_same_answers() -> None:
    def task(seed: int) -> list[str]:
        sampler, found = make_sampler(SearchStrategy.OPTUNA, SPACE, PROFILE, {}, axes=(), seed=seed), []
        while (candidate := sampler.proposal()) is not None:
            found.append(candidate.candidate_id)
            sampler.launched(candidate.candidate_id)
            sampler.ended(candidate.candidate_id, failed=False, seconds=1.0)
        return found

    assert sorted(task(1)) == sorted(candidate.candidate_id for candidate in SPACE)
    assert task(1) == task(1)


@pytest.mark.slow
def test_a_number_axis_that_the_engine_declares_is_searched_by_its_order() -> None:
    """The fake engine's tile: 64 is best, and it gets slower by the ratio to that."""
    declared = FakeAdapter().axes(DeviceFacts(device=DeviceType.CPU, device_name="the CPU of a test"))
    as_name = [replace(axis, kind=AxisKind.CHOICE, scale=None) if axis.name == "tile" else axis for axis in declared]
    space = [SPACE[0]] + [
        replace(SPACE[0], settings=(("fused", fused), ("layout", layout), ("tile", 2**power)))
        for fused, layout, power in itertools.product((True, False), ("rows", "columns"), range(15))
    ]

    def launches(axes: Sequence[Axis]) -> list[Candidate]:
        sampler, found = make_sampler(SearchStrategy.MODEL, space, PROFILE, {}, axes=axes, seed=0), list[Candidate]()
        while (candidate := sampler.proposal()) is not None:
            found.append(candidate)
            sampler.launched(candidate.candidate_id)
            sampler.measured(candidate.candidate_id, 1, _metrics(speed_factor(candidate)))
            sampler.ended(candidate.candidate_id, failed=False, seconds=1.0)
        return found

    assert min(space, key=speed_factor) in launches(declared)
    assert len(launches(declared)) < 0.8 * len(launches(as_name))


def _metrics(factor: float) -> Metrics:
    itl = 20.0 * factor
    return Metrics(
        ttft_ms=400.0 * factor,
        itl_p50_ms=itl,
        itl_p95_ms=itl,
        itl_p99_ms=itl,
        decode_tok_s=1000.0 / itl,
        peak_mib=1000.0,
    )
