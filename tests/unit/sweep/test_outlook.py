"""What a sweep says is still to come."""

from __future__ import annotations

import pytest
from queue_samples import SPACE, TRIAL_S, Clock, answer, make_queue

from kvray.config import SearchStrategy
from kvray.forecast.prediction import CellForecast, Forecast
from kvray.record import Role
from kvray.sweep.outlook import Outlook, expected_launches, expected_seconds
from kvray.workload import Cell


def test_nothing_is_guessed_before_a_trial_has_told_how_long_one_takes() -> None:
    queue = make_queue()
    queue.next_trial()
    assert queue.outlook() == Outlook()


def test_what_is_left_of_a_grid_is_counted() -> None:
    queue = make_queue()
    task = queue.next_trial()
    assert task is not None
    queue.trial_finished(answer(task))
    # A launch is taken to last a third of the baseline, whose trial has all rungs.
    assert queue.outlook().left_s == pytest.approx((3 * TRIAL_S / 3, 3 * TRIAL_S / 3))


def test_the_budget_bounds_what_is_left() -> None:
    clock = Clock()
    queue = make_queue(clock=clock, deadline_s=12.0)
    task = queue.next_trial()
    assert task is not None
    queue.trial_finished(answer(task))
    clock.now = 10.0
    assert queue.outlook().left_s == (2.0, 2.0)


def test_confirming_trials_are_numbered_up_to_the_most_there_can_be() -> None:
    queue = make_queue(confirm_rounds=2)
    told = []
    while (task := queue.next_trial()) is not None:
        told.append((queue.outlook().confirming, queue.outlook().confirming_most))
        queue.trial_finished(answer(task))
    search, confirming = told[: len(SPACE)], told[len(SPACE) :]
    assert set(search) == {(0, 0)}
    assert [number for number, _ in confirming] == list(range(1, len(confirming) + 1))
    assert confirming[-1] == (len(confirming), len(confirming))
    assert all(number <= most for number, most in confirming)
    assert queue.outlook().left_s == (0.0, 0.0)


def test_a_confirming_trial_takes_time_until_it_has_ended() -> None:
    queue = make_queue(confirm_rounds=1)
    left = []
    while (task := queue.next_trial()) is not None:
        if task.spec.role is Role.CONFIRM:
            left.append(queue.outlook().left_s)
        queue.trial_finished(answer(task))
    assert left
    assert left[-1] == (TRIAL_S, TRIAL_S)


@pytest.mark.parametrize(("candidates", "seen"), [(24, 10), (50, 17), (100, 22), (200, 34), (400, 40)])
def test_usual_launches_are_near_those_of_the_benchmark(candidates: int, seen: int) -> None:
    low, high = expected_launches(SearchStrategy.MODEL, candidates)
    assert 0.8 * seen < low < 1.2 * seen < high < candidates


def test_what_is_enumerated_or_bounded_is_known() -> None:
    assert expected_launches(SearchStrategy.GRID, 100) == (100, 100)
    assert expected_launches(SearchStrategy.MODEL, 12) == (12, 12)
    assert expected_launches(SearchStrategy.MODEL, 100, most=5) == (5, 5)


def forecast_of(ttft_ms: float | None) -> Forecast:
    cell = CellForecast(
        cell=Cell(512, 11, 1), ttft_ms=ttft_ms, decode_tok_s=10.0, peak_mib=1.0, held_mib=1.0, ideal_decode_tok_s=None
    )
    return Forecast.of([cell], [cell])


def test_a_sweep_is_expected_to_take_what_its_generations_and_starts_take() -> None:
    # A full generation takes 1 s + 10 / 10 s, a warm-up call 1 s + 7 / 10 s, a start 3 s.
    baseline, other = 3 + 4 * 2 + 3 * 1.7, 3 + 4 * 2 + 3 * 1.7
    expected = expected_seconds(
        forecast_of(1000.0), [forecast_of(1000.0)] * 3, launches=(4, 4), repeats=3, confirm_rounds=0
    )
    assert expected == pytest.approx((10 + 0.7 * (baseline + 3 * other), 10 + 2 * (baseline + 3 * other)))


def test_confirming_and_slots_change_what_is_expected() -> None:
    def expected(confirm_rounds: int, slots: int = 1) -> float:
        some = expected_seconds(
            forecast_of(1000.0),
            [forecast_of(1000.0)] * 9,
            launches=(10, 10),
            repeats=1,
            confirm_rounds=confirm_rounds,
            slots=slots,
        )
        assert some is not None
        return some[1]

    assert expected(3) > expected(1) > expected(0) > expected(0, slots=2)


def test_without_forecast_times_nothing_is_expected() -> None:
    assert expected_seconds(forecast_of(None), [], launches=(1, 1), repeats=1, confirm_rounds=0) is None


def test_what_an_earlier_attempt_has_launched_is_not_expected_again() -> None:
    one_s = 3 + 4 * 2 + 3 * 1.7

    def expected(measured: int) -> float:
        three = [forecast_of(1000.0)] * 3
        launches = (4, 4)
        some = expected_seconds(
            forecast_of(1000.0), three, launches=launches, repeats=3, confirm_rounds=0, measured=measured
        )
        assert some is not None
        return some[1]

    assert [expected(measured) for measured in (0, 1, 3, 4, 9)] == pytest.approx(
        [10 + 2 * left * one_s for left in (4, 3, 1, 0, 0)]
    )
