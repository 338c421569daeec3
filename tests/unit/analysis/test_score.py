"""Utility, ideal and score."""

from __future__ import annotations

import math

import pytest
from analysis_samples import make_metrics, make_profile
from hypothesis import assume, given
from hypothesis import strategies as st

from kvray.analysis.aggregate import Metrics
from kvray.analysis.score import ideal_utility, score, utility

positive = st.floats(min_value=0.1, max_value=1e5)
any_metrics = st.builds(make_metrics, positive, positive, positive)
PROFILE = make_profile(weight_ttft=0.5, weight_throughput=0.3, weight_memory=0.2)


def test_utility_is_the_weighted_sum_of_logarithms() -> None:
    expected = 0.5 * math.log(1 / 200) + 0.3 * math.log(40) + 0.2 * math.log(1 / 1000)

    assert utility(make_metrics(200.0, 40.0, 1000.0), PROFILE) == pytest.approx(expected)


def test_without_a_peak_the_memory_term_is_zero() -> None:
    expected = 0.5 * math.log(1 / 200) + 0.3 * math.log(40)

    assert utility(make_metrics(200.0, 40.0, None), PROFILE) == pytest.approx(expected)


def test_the_ideal_takes_the_best_of_each_metric() -> None:
    everything = [make_metrics(100.0, 20.0, 900.0), make_metrics(300.0, 60.0, 700.0), make_metrics(300.0, 20.0, 900.0)]

    assert ideal_utility(everything, PROFILE) == pytest.approx(utility(make_metrics(100.0, 60.0, 700.0), PROFILE))


def test_the_ideal_of_candidates_without_peaks_has_none() -> None:
    alone = make_metrics(peak_mib=None)

    assert ideal_utility([alone], PROFILE) == utility(alone, PROFILE)


def test_half_as_good_in_every_metric_scores_50() -> None:
    best, half = make_metrics(100.0, 80.0, 500.0), make_metrics(200.0, 40.0, 1000.0)

    assert score(utility(half, PROFILE), ideal_utility([best, half], PROFILE)) == pytest.approx(50.0)


@given(any_metrics, any_metrics, any_metrics)
def test_the_order_of_two_does_not_depend_on_what_else_was_measured(one: Metrics, two: Metrics, third: Metrics) -> None:
    first, second = utility(one, PROFILE), utility(two, PROFILE)
    assume(abs(first - second) > 1e-9)

    for seen in ([one, two], [one, two, third]):
        ideal = ideal_utility(seen, PROFILE)
        assert (score(first, ideal) > score(second, ideal)) == (first > second)


@given(st.lists(any_metrics, min_size=1, max_size=6))
def test_no_score_exceeds_100(everything: list[Metrics]) -> None:
    ideal = ideal_utility(everything, PROFILE)

    assert all(0 < score(utility(one, PROFILE), ideal) <= 100 * (1 + 1e-9) for one in everything)
