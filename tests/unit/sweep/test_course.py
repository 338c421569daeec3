"""What a sweep launches and when it ends, without Ray: the test is the slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from course_samples import (
    BASELINE,
    FAST,
    SPACE,
    TRIAL_S,
    Clock,
    answer,
    blank,
    drive,
    make_course,
    roles,
)

from kvray.analysis.aggregate import Metrics
from kvray.analysis.evidence import confirm_round
from kvray.analysis.launching import EveryCandidate
from kvray.candidate import Candidate
from kvray.record import Role, TrialRecord, TrialResult, TrialStatus
from kvray.sweep.trial_order import TrialOrder
from kvray.workload import Limits


def test_the_baseline_comes_first_and_every_candidate_once() -> None:
    orders = drive(make_course())
    assert [order.spec.candidate for order in orders] == SPACE
    assert roles(orders) == [Role.BASELINE, Role.SEARCH, Role.SEARCH, Role.SEARCH]
    assert all(order.spec.rungs == (0, 1, 2) for order in orders)
    assert all(order.spec.reference is not None for order in orders)


def test_with_repeats_apart_only_the_baseline_repeats_in_its_own_process() -> None:
    orders = drive(make_course(repeats_apart=True, confirm_rounds=1))
    assert [order.spec.rungs for order in orders[:4]] == [(0, 1, 2), (0, 1), (0, 1), (0, 1)]


def test_without_confirming_nothing_repeats_apart() -> None:
    assert all(order.spec.rungs == (0, 1, 2) for order in drive(make_course(repeats_apart=True)))


def test_confirming_runs_winner_and_baseline_again_in_rounds() -> None:
    orders = drive(make_course(confirm_rounds=2))
    again = [order.spec for order in orders if order.spec.role is Role.CONFIRM]
    assert {spec.candidate for spec in again} >= {BASELINE, FAST}
    assert all(spec.rungs == (1,) and spec.reference is None for spec in again)
    assert len({spec.trial_id for spec in again}) == len(again)
    rounds = [confirm_round(blank(spec)) for spec in again]
    assert rounds == sorted(rounds, key=lambda number: number or 0)
    assert set(rounds) == {1, 2}


def test_a_free_slot_waits_while_a_running_trial_may_change_what_comes_next() -> None:
    course = make_course(confirm_rounds=1)
    running = [course.next_order() for _ in SPACE]
    assert course.next_order() is None
    assert not course.is_over, "the winner is not known yet"
    for order in running:
        assert order is not None
        course.trial_finished(answer(order))
    again = course.next_order()
    assert again is not None
    assert again.spec.role is Role.CONFIRM


def test_a_round_begins_only_when_the_last_one_has_ended() -> None:
    course = make_course(confirm_rounds=2)
    for _ in SPACE:
        order = course.next_order()
        assert order is not None
        course.trial_finished(answer(order))
    round_one = []
    while (order := course.next_order()) is not None:
        round_one.append(order)
    assert {confirm_round(blank(order.spec)) for order in round_one} == {1}
    assert not course.is_over
    for order in round_one:
        course.trial_finished(answer(order))
    following = course.next_order()
    assert following is None or confirm_round(blank(following.spec)) == 2


def test_no_more_than_the_allowed_trials_are_launched_and_the_others_are_named() -> None:
    course = make_course(max_trials=2)
    assert len(drive(course)) == 2
    assert [one for one, _ in course.never_launched()] == SPACE[2:]
    assert {reason for _, reason in course.never_launched()} == {"--max-trials 2 was reached"}


def test_everything_launched_leaves_nobody_to_name() -> None:
    course = make_course()
    drive(course)
    assert course.never_launched() == ()


def test_the_baseline_is_measured_whatever_the_budget() -> None:
    clock = Clock()
    orders = drive(make_course(clock=clock, deadline_s=0.5, confirm_rounds=3), clock=clock)
    assert roles(orders) == [Role.BASELINE]


def test_a_budget_leaves_time_to_confirm() -> None:
    clock = Clock()
    orders = drive(make_course(clock=clock, deadline_s=6 * TRIAL_S, confirm_rounds=4), clock=clock)
    assert Role.CONFIRM in roles(orders)
    assert clock.now <= 6 * TRIAL_S


def test_out_of_time_is_told_by_the_clock() -> None:
    clock = Clock()
    course = make_course(clock=clock, deadline_s=5.0)
    assert not course.is_out_of_time()
    clock.now = 5.0
    assert course.is_out_of_time()
    assert not make_course(clock=clock).is_out_of_time()


def test_what_is_recorded_is_not_launched_again() -> None:
    done = [answer(order) for order in drive(make_course())[:2]]
    assert [order.spec.candidate for order in drive(make_course(recorded=done))] == SPACE[2:]


def test_a_resumed_sweep_goes_on_with_the_round_after_the_recorded_one() -> None:
    first = drive(make_course(confirm_rounds=1))
    recorded = [answer(order) for order in first]
    orders = drive(make_course(recorded=recorded, confirm_rounds=2))
    assert {confirm_round(blank(order.spec)) for order in orders} <= {2}


def test_records_of_candidates_that_are_no_longer_asked_for_do_not_disturb() -> None:
    order = drive(make_course())[0]
    stranger = replace(BASELINE, batch_size=7)
    foreign = answer(order)
    record = TrialRecord.of(
        stranger, run_id="r", trial_id="x", role=Role.SEARCH, model_id="m", profile="small", status=TrialStatus.OK
    )
    assert len(drive(make_course(recorded=[TrialResult(record=record, runs=foreign.runs)]))) == len(SPACE)


def test_nothing_is_confirmed_when_everything_failed() -> None:
    orders = drive(make_course(confirm_rounds=3), status=lambda order: TrialStatus.OOM)
    assert Role.CONFIRM not in roles(orders)


def test_a_confirming_trial_that_fails_does_not_hold_the_sweep_up() -> None:
    def status(order: TrialOrder) -> TrialStatus:
        return TrialStatus.CRASHED if order.spec.role is Role.CONFIRM else TrialStatus.OK

    orders = drive(make_course(confirm_rounds=2), status=status)
    assert Role.CONFIRM in roles(orders)


def test_a_trial_whose_slot_died_runs_again_next_and_twice_at_most() -> None:
    course = make_course(max_trials=2)
    order = course.next_order()
    assert order is not None
    tried = [order]
    while not tried[-1].is_last_attempt:
        course.trial_lost(tried[-1])
        assert not course.is_over
        again = course.next_order()
        assert again is not None
        tried.append(again)
    assert [one.attempt for one in tried] == [1, 2, 3]
    assert {one.spec for one in tried} == {order.spec}
    course.trial_lost(tried[-1])
    other = course.next_order()
    assert other is not None
    assert other.spec.trial_id != order.spec.trial_id
    course.trial_finished(answer(other))
    assert course.next_order() is None
    assert course.is_over


class Listening(EveryCandidate):
    def __init__(self) -> None:
        super().__init__(SPACE)
        self.heard: list[tuple[int, bool]] = []
        self.disturbed: list[bool] = []

    def measured(
        self,
        candidate_id: str,
        rung: int,
        metrics: Metrics,
        *,
        may_keep_limits: bool = True,
        is_disturbed: bool = False,
    ) -> None:
        self.heard.append((rung, may_keep_limits))
        self.disturbed.append(is_disturbed)


def test_the_search_hears_of_every_rung_and_of_limits() -> None:
    launches = Listening()
    course = make_course(launches=launches)
    order = course.next_order()
    assert order is not None
    result = answer(order)
    course.rung_finished(TrialResult(record=result.record.with_(rung=0), runs=result.runs))
    course.trial_finished(result)
    assert launches.heard == [(0, True), (2, True)]


@pytest.mark.parametrize("rounds", [1, 3])
def test_confirming_ends_after_the_most_rounds(rounds: int) -> None:
    orders = drive(make_course(confirm_rounds=rounds))
    numbers = [confirm_round(blank(order.spec)) or 0 for order in orders if order.spec.role is Role.CONFIRM]
    assert max(numbers) <= rounds


def test_a_dear_baseline_does_not_keep_a_first_look_at_others_from_being_launched() -> None:
    """Its trial has all rungs; a launch out of time ends with its first."""
    clock = Clock()
    course = make_course(clock=clock, deadline_s=4 * TRIAL_S, confirm_rounds=1)
    order = course.next_order()
    assert order is not None
    clock.now = 2.4 * TRIAL_S
    course.trial_finished(answer(order))
    following = course.next_order()
    assert following is not None
    assert following.spec.role is Role.SEARCH


def test_who_was_not_launched_for_want_of_time_is_told_so() -> None:
    clock = Clock()
    course = make_course(clock=clock, deadline_s=0.5)
    drive(course, clock=clock)
    assert {reason for _, reason in course.never_launched()} == {"the budget of 0.5 s left no time for another launch"}


def confirmed(orders: Sequence[TrialOrder]) -> set[Candidate]:
    return {order.spec.candidate for order in orders if order.spec.role is Role.CONFIRM}


def test_whoever_was_disturbed_is_measured_again_in_the_confirming_rounds() -> None:
    """The fast one took four times as long in the search, and is the best."""
    orders = drive(
        make_course(confirm_rounds=2),
        disturbed=lambda order: order.spec.candidate == FAST and order.spec.role is Role.SEARCH,
    )
    assert FAST in confirmed(orders)


def test_nobody_fails_a_limit_on_disturbed_runs_alone_while_there_are_rounds_left() -> None:
    orders = drive(
        make_course(confirm_rounds=2, limits=Limits(max_ttft_ms=120.0)),
        disturbed=lambda order: order.spec.role is not Role.CONFIRM,
    )
    assert FAST in confirmed(orders)


def test_near_misses_are_confirmed_where_nothing_keeps_the_limits() -> None:
    orders = drive(make_course(confirm_rounds=1, limits=Limits(max_ttft_ms=65.0)))
    assert confirmed(orders) == {FAST, BASELINE}
    assert confirmed(drive(make_course(confirm_rounds=1, limits=Limits(max_ttft_ms=50.0)))) == set()


def test_a_machine_that_is_never_quiet_ends_the_sweep_all_the_same() -> None:
    orders = drive(make_course(confirm_rounds=3), disturbed=lambda order: True)
    assert max(confirm_round(blank(order.spec)) or 0 for order in orders) == 3


def test_the_search_is_told_what_was_disturbed_and_which_misses_are_doubtful() -> None:
    launches = Listening()
    course = make_course(launches=launches, limits=Limits(max_ttft_ms=95.0))
    for disturbed, factor in ((True, 1.0), (False, 1.0), (False, 2.0)):
        order = course.next_order()
        assert order is not None
        course.trial_finished(answer(order, disturbed=disturbed, factor=factor))
    assert launches.heard == [(2, True), (2, True), (2, False)]
    assert launches.disturbed == [True, False, False]
