"""Who is recommended among candidates that cannot be told apart."""

from __future__ import annotations

import numpy as np
import pytest
from analysis_samples import make_candidate

from kvray.analysis.choice import Choice, Reason, better_than_baseline, choose, complexity
from kvray.analysis.intervals import Interval
from kvray.analysis.ranking import Gain
from kvray.analysis.utility_posterior import UtilityPosterior
from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, CompileMode, DType

PLAIN = (0, False, False)
ODD = (2, False, False)


def posterior(*, noise: float = 0.006, **means: float) -> UtilityPosterior:
    """Draws around `means` that overlap within a few `noise`."""
    draws = np.random.default_rng(0).normal(0.0, noise, (len(means), 4000)).T
    return UtilityPosterior(ids=tuple(means), utilities=draws + np.array(list(means.values())))


def test_a_clear_leader_is_chosen_however_complex() -> None:
    choice = choose(posterior(a=0.5, b=0.0), {"a": 900.0, "b": 100.0}, {"a": ODD, "b": PLAIN})

    assert choice == Choice(candidate_id="a", over="a", reason=Reason.BEST)


def test_among_ties_the_leaner_is_chosen_before_the_simpler() -> None:
    choice = choose(
        posterior(a=0.01, lean=0.005, simple=0.005),
        {"a": 1000.0, "lean": 950.0, "simple": 1000.0},
        {"a": ODD, "lean": ODD, "simple": PLAIN},
    )

    assert choice == Choice(candidate_id="lean", over="a", reason=Reason.LEANER)


@pytest.mark.parametrize("peak", [990.0, 1010.0, None])
def test_memory_that_hardly_differs_leaves_it_to_simplicity(peak: float | None) -> None:
    choice = choose(posterior(a=0.005, b=0.0), {"a": 1000.0, "b": peak}, {"a": ODD, "b": PLAIN})

    assert choice == Choice(candidate_id="b", over="a", reason=Reason.SIMPLER)


def test_equally_lean_and_simple_ones_leave_it_to_the_better() -> None:
    choice = choose(posterior(a=0.005, b=0.0), {"a": 1000.0, "b": 1000.0}, {"a": PLAIN, "b": PLAIN})

    assert choice == Choice(candidate_id="a", over="a", reason=Reason.BEST)


@pytest.mark.parametrize("contest", [posterior(a=0.013, b=0.0), posterior(a=0.001, b=0.0, noise=0.02)])
def test_a_tie_that_may_well_be_more_than_two_per_cent_worse_is_not_chosen(contest: UtilityPosterior) -> None:
    assert contest.ties("a") == ("b",)

    assert choose(contest, {"a": 1000.0, "b": 500.0}, {"a": ODD, "b": PLAIN}).candidate_id == "a"


def test_what_differs_less_from_the_baseline_is_simpler_then_what_is_plain() -> None:
    baseline = make_candidate(0)

    def variant(**changes: object) -> Candidate:
        fields = {"engine": "fake", "attention": AttentionBackend.SDPA, "dtype": DType.FLOAT32}
        return Candidate(**{**fields, "cache": CacheStrategy.DYNAMIC, **changes})  # type: ignore[arg-type]

    assert complexity(baseline, baseline) < complexity(make_candidate(1), baseline)
    assert complexity(variant(), None) < complexity(variant(compile=CompileMode.DEFAULT), None)
    assert complexity(variant(compile=CompileMode.DEFAULT), None) < complexity(
        variant(cache=CacheStrategy.STATIC), None
    )


def gain(low: float, *, memory: float = 0.0) -> Gain:
    """A gain in TTFT with this lower end."""
    interval = Interval(value=low + 0.1, low=low, high=low + 0.2)
    return Gain(ttft=low + 0.1, throughput=0.0, memory=memory, pairs=3, ttft_interval=interval)


def test_the_baseline_is_kept_unless_something_is_measurably_better() -> None:
    contest = posterior(base=0.0, a=0.02, b=0.01)
    peaks, complexities = dict.fromkeys(contest.ids, 1000.0), {"base": PLAIN, "a": ODD, "b": ODD}

    kept = choose(contest, peaks, complexities, baseline_id="base", better=())
    changed = choose(contest, peaks, complexities, baseline_id="base", better={"a", "b"})
    surer = choose(contest, peaks, complexities, baseline_id="base", better={"b"})

    assert kept == Choice(candidate_id="base", over="a", reason=Reason.NO_GAIN)
    assert changed == Choice(candidate_id="a", over="a", reason=Reason.BEST)
    assert surer == Choice(candidate_id="b", over="a", reason=Reason.SURER)


def test_a_leading_baseline_is_the_best_and_yields_to_a_leaner_tie_alone() -> None:
    contest = posterior(base=0.005, lean=0.004, other=0.004)
    peaks, complexities = {"base": 1000.0, "lean": 900.0, "other": 1000.0}, {"base": PLAIN, "lean": ODD, "other": ODD}

    assert choose(contest, peaks, complexities, baseline_id="base").reason is Reason.BEST
    leaner = choose(contest, peaks, complexities, baseline_id="base", better={"lean"})
    assert leaner == Choice(candidate_id="lean", over="base", reason=Reason.LEANER)


@pytest.mark.parametrize(
    ("ahead", "of", "is_better"),
    [
        (0.05, gain(0.01), True),  # scores higher, and TTFT surely gains
        (0.05, gain(-0.01), False),  # scores higher, but no gain of its own is sure
        (0.005, gain(0.01), False),  # TTFT surely gains, but whether the score does is open
        (-0.005, gain(-0.1, memory=0.1), True),  # hardly worse, and leaner
        (-0.05, gain(-0.1, memory=0.1), False),  # leaner, but surely worse
    ],
)
def test_better_than_the_baseline_is_a_higher_score_with_a_sure_gain_or_less_memory(
    ahead: float, of: Gain, is_better: bool
) -> None:
    better = better_than_baseline(posterior(base=0.0, a=ahead), "base", {"a": of, "base": gain(0.0)})

    assert better == ({"a"} if is_better else set())
