"""What a sweep says is still to come."""

from __future__ import annotations

import pytest
from course_samples import SPACE, TRIAL_S, Clock, answer, make_course

from kvray.config import SearchStrategy
from kvray.sweep.outlook import Outlook, expected_launches


def test_nothing_is_guessed_before_a_trial_has_told_how_long_one_takes() -> None:
    course = make_course()
    course.next_order()
    assert course.outlook() == Outlook()


def test_what_is_left_of_a_grid_is_counted() -> None:
    course = make_course()
    order = course.next_order()
    assert order is not None
    course.trial_finished(answer(order))
    # A launch is taken to last a third of the baseline, whose trial has all rungs.
    assert course.outlook().left_s == pytest.approx((3 * TRIAL_S / 3, 3 * TRIAL_S / 3))


def test_the_budget_bounds_what_is_left() -> None:
    clock = Clock()
    course = make_course(clock=clock, deadline_s=12.0)
    order = course.next_order()
    assert order is not None
    course.trial_finished(answer(order))
    clock.now = 10.0
    assert course.outlook().left_s == (2.0, 2.0)


def test_confirming_trials_are_numbered_up_to_the_most_there_can_be() -> None:
    course = make_course(confirm_rounds=2)
    told = []
    while (order := course.next_order()) is not None:
        told.append((course.outlook().confirming, course.outlook().confirming_most))
        course.trial_finished(answer(order))
    search, confirming = told[: len(SPACE)], told[len(SPACE) :]
    assert set(search) == {(0, 0)}
    assert [number for number, _ in confirming] == list(range(1, len(confirming) + 1))
    assert confirming[-1] == (len(confirming), len(confirming))
    assert all(number <= most for number, most in confirming)
    assert course.outlook().left_s == (0.0, 0.0)


@pytest.mark.parametrize(("candidates", "seen"), [(24, 10), (50, 17), (100, 22), (200, 34), (400, 40)])
def test_usual_launches_are_near_those_of_the_benchmark(candidates: int, seen: int) -> None:
    low, high = expected_launches(SearchStrategy.MODEL, candidates)
    assert 0.8 * seen < low < 1.2 * seen < high < candidates


def test_what_is_enumerated_or_bounded_is_known() -> None:
    assert expected_launches(SearchStrategy.GRID, 100) == (100, 100)
    assert expected_launches(SearchStrategy.MODEL, 12) == (12, 12)
    assert expected_launches(SearchStrategy.MODEL, 100, most=5) == (5, 5)
