"""Who is not beaten in everything."""

from __future__ import annotations

import random

from analysis_samples import make_metrics, make_profile
from hypothesis import given
from hypothesis import strategies as st

from kvray.analysis.aggregate import Metrics
from kvray.analysis.pareto import pareto_front
from kvray.analysis.score import utility

few = st.sampled_from((1.0, 2.0, 3.0, 4.0))
points_with_peaks = st.lists(st.builds(make_metrics, few, few, few), min_size=1, max_size=9)
points_of_any_kind = st.lists(st.builds(make_metrics, few, few, st.none() | few), min_size=1, max_size=9)


def test_a_point_worse_in_one_and_better_in_none_is_off_the_front() -> None:
    assert pareto_front([make_metrics(100.0, 50.0, 900.0), make_metrics(100.0, 50.0, 901.0)]) == (True, False)


def test_being_best_in_one_metric_is_enough() -> None:
    points = [make_metrics(1.0, 1.0, 9.0), make_metrics(9.0, 9.0, 9.0), make_metrics(9.0, 1.0, 1.0)]

    assert pareto_front(points) == (True, True, True)


def test_an_unknown_peak_counts_as_equal() -> None:
    assert pareto_front([make_metrics(2.0, 1.0, 1.0), make_metrics(1.0, 1.0, None)]) == (False, True)


def test_equal_points_are_on_the_front_together() -> None:
    assert pareto_front([make_metrics(), make_metrics()]) == (True, True)


def test_no_points_have_an_empty_front() -> None:
    assert pareto_front([]) == ()


@given(points_of_any_kind)
def test_somebody_is_always_on_the_front(points: list[Metrics]) -> None:
    assert any(pareto_front(points))


@given(points_with_peaks)
def test_whoever_is_off_the_front_is_beaten_by_somebody_on_it(points: list[Metrics]) -> None:
    front = pareto_front(points)
    leaders = [point for point, on_front in zip(points, front, strict=True) if on_front]

    for point, on_front in zip(points, front, strict=True):
        beaten = any(
            leader != point
            and leader.ttft_ms <= point.ttft_ms
            and leader.decode_tok_s >= point.decode_tok_s
            and (leader.peak_mib or 0) <= (point.peak_mib or 0)
            for leader in leaders
        )
        assert beaten != on_front


@given(points_with_peaks)
def test_the_best_by_utility_is_on_the_front(points: list[Metrics]) -> None:
    values = [utility(point, make_profile()) for point in points]

    assert pareto_front(points)[values.index(max(values))]


@given(points_of_any_kind, st.randoms())
def test_the_front_does_not_depend_on_the_order(points: list[Metrics], shuffler: random.Random) -> None:
    order = list(range(len(points)))
    shuffler.shuffle(order)
    front = pareto_front(points)

    assert pareto_front([points[index] for index in order]) == tuple(front[index] for index in order)
