"""What a sweep launches and when it ends, without Ray: the test is the slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from queue_samples import (
    BASELINE,
    FAST,
    SPACE,
    TRIAL_S,
    Clock,
    answer,
    blank,
    drive,
    make_queue,
    roles,
)

from kvray.analysis.aggregate import Metrics
from kvray.analysis.evidence import confirm_round
from kvray.analysis.sampler import EveryCandidate
from kvray.candidate import Candidate
from kvray.record import Role, TrialRecord, TrialResult, TrialStatus
from kvray.sweep.trial_task import TrialTask
from kvray.workload import Limits


def test_the_baseline_comes_first_and_every_candidate_once() -> None:
    tasks = drive(make_queue())
    assert [task.spec.candidate for task in tasks] == SPACE
    assert roles(tasks) == [Role.BASELINE, Role.SEARCH, Role.SEARCH, Role.SEARCH]
    assert all(task.spec.rungs == (0, 1, 2) for task in tasks)
    assert all(task.spec.reference is not None for task in tasks)


def test_with_repeats_apart_only_the_baseline_repeats_in_its_own_process() -> None:
    tasks = drive(make_queue(repeats_apart=True, confirm_rounds=1))
    assert [task.spec.rungs for task in tasks[:4]] == [(0, 1, 2), (0, 1), (0, 1), (0, 1)]


def test_what_each_engine_does_with_nothing_set_repeats_in_its_own_process_too() -> None:
    default = SPACE[2]
    queue = make_queue(repeats_apart=True, confirm_rounds=1, defaults=[default.candidate_id])
    assert [one for one in SPACE if queue.is_measured_whole(one.candidate_id)] == [default]
    tasks = drive(queue)
    assert [task.spec.candidate for task in tasks[:2]] == [SPACE[0], default]
    assert [task.spec.rungs for task in tasks[:4]] == [(0, 1, 2), (0, 1, 2), (0, 1), (0, 1)]


def test_without_confirming_nothing_repeats_apart() -> None:
    assert all(task.spec.rungs == (0, 1, 2) for task in drive(make_queue(repeats_apart=True)))


def test_confirming_runs_winner_and_baseline_again_in_rounds() -> None:
    tasks = drive(make_queue(confirm_rounds=2))
    again = [task.spec for task in tasks if task.spec.role is Role.CONFIRM]
    assert {spec.candidate for spec in again} >= {BASELINE, FAST}
    assert all(spec.rungs == (1,) and spec.reference is None for spec in again)
    assert len({spec.trial_id for spec in again}) == len(again)
    rounds = [confirm_round(blank(spec)) for spec in again]
    assert rounds == sorted(rounds, key=lambda number: number or 0)
    assert set(rounds) == {1, 2}


def test_a_free_slot_waits_while_a_running_trial_may_change_what_comes_next() -> None:
    queue = make_queue(confirm_rounds=1)
    running = [queue.next_trial() for _ in SPACE]
    assert queue.next_trial() is None
    assert not queue.is_over, "the winner is not known yet"
    for task in running:
        assert task is not None
        queue.trial_finished(answer(task))
    again = queue.next_trial()
    assert again is not None
    assert again.spec.role is Role.CONFIRM


def test_a_round_begins_only_when_the_last_one_has_ended() -> None:
    queue = make_queue(confirm_rounds=2)
    for _ in SPACE:
        task = queue.next_trial()
        assert task is not None
        queue.trial_finished(answer(task))
    round_one = []
    while (task := queue.next_trial()) is not None:
        round_one.append(task)
    assert {confirm_round(blank(task.spec)) for task in round_one} == {1}
    assert not queue.is_over
    for task in round_one:
        queue.trial_finished(answer(task))
    following = queue.next_trial()
    assert following is None or confirm_round(blank(following.spec)) == 2


def test_no_more_than_the_allowed_trials_are_launched_and_the_others_are_named() -> None:
    queue = make_queue(max_trials=2)
    assert len(drive(queue)) == 2
    assert [one for one, _ in queue.never_launched()] == SPACE[2:]
    assert {reason for _, reason in queue.never_launched()} == {"--max-trials 2 was reached"}


def test_everything_launched_leaves_nobody_to_name() -> None:
    queue = make_queue()
    drive(queue)
    assert queue.never_launched() == ()


def test_the_baseline_is_measured_whatever_the_budget() -> None:
    clock = Clock()
    tasks = drive(make_queue(clock=clock, deadline_s=0.5, confirm_rounds=3), clock=clock)
    assert roles(tasks) == [Role.BASELINE]


def test_a_budget_leaves_time_to_confirm() -> None:
    clock = Clock()
    tasks = drive(make_queue(clock=clock, deadline_s=6 * TRIAL_S, confirm_rounds=4), clock=clock)
    assert Role.CONFIRM in roles(tasks)
    assert clock.now <= 6 * TRIAL_S


def test_out_of_time_is_told_by_the_clock() -> None:
    clock = Clock()
    queue = make_queue(clock=clock, deadline_s=5.0)
    assert not queue.is_out_of_time()
    clock.now = 5.0
    assert queue.is_out_of_time()
    assert not make_queue(clock=clock).is_out_of_time()


def test_what_is_recorded_is_not_launched_again() -> None:
    done = [answer(task) for task in drive(make_queue())[:2]]
    assert [task.spec.candidate for task in drive(make_queue(recorded=done))] == SPACE[2:]


def test_a_resumed_sweep_goes_on_with_the_round_after_the_recorded_one() -> None:
    first = drive(make_queue(confirm_rounds=1))
    recorded = [answer(task) for task in first]
    tasks = drive(make_queue(recorded=recorded, confirm_rounds=2))
    assert {confirm_round(blank(task.spec)) for task in tasks} <= {2}


def test_records_of_candidates_that_are_no_longer_asked_for_do_not_disturb() -> None:
    task = drive(make_queue())[0]
    stranger = replace(BASELINE, batch_size=7)
    foreign = answer(task)
    record = TrialRecord.of(
        stranger, run_id="r", trial_id="x", role=Role.SEARCH, model_id="m", profile="small", status=TrialStatus.OK
    )
    assert len(drive(make_queue(recorded=[TrialResult(record=record, runs=foreign.runs)]))) == len(SPACE)


def test_nothing_is_confirmed_when_everything_failed() -> None:
    tasks = drive(make_queue(confirm_rounds=3), status=lambda task: TrialStatus.OOM)
    assert Role.CONFIRM not in roles(tasks)


def test_a_confirming_trial_that_fails_does_not_hold_the_sweep_up() -> None:
    def status(task: TrialTask) -> TrialStatus:
        return TrialStatus.CRASHED if task.spec.role is Role.CONFIRM else TrialStatus.OK

    tasks = drive(make_queue(confirm_rounds=2), status=status)
    assert Role.CONFIRM in roles(tasks)


def test_a_trial_whose_slot_died_runs_again_next_and_twice_at_most() -> None:
    queue = make_queue(max_trials=2)
    task = queue.next_trial()
    assert task is not None
    tried = [task]
    while not tried[-1].is_last_attempt:
        queue.trial_lost(tried[-1])
        assert not queue.is_over
        again = queue.next_trial()
        assert again is not None
        tried.append(again)
    assert [one.attempt for one in tried] == [1, 2, 3]
    assert {one.spec for one in tried} == {task.spec}
    queue.trial_lost(tried[-1])
    other = queue.next_trial()
    assert other is not None
    assert other.spec.trial_id != task.spec.trial_id
    queue.trial_finished(answer(other))
    assert queue.next_trial() is None
    assert queue.is_over


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
    sampler = Listening()
    queue = make_queue(sampler=sampler)
    task = queue.next_trial()
    assert task is not None
    result = answer(task)
    queue.rung_finished(TrialResult(record=result.record.with_(rung=0), runs=result.runs))
    queue.trial_finished(result)
    assert sampler.heard == [(0, True), (2, True)]


@pytest.mark.parametrize("rounds", [1, 3])
def test_confirming_ends_after_the_most_rounds(rounds: int) -> None:
    tasks = drive(make_queue(confirm_rounds=rounds))
    numbers = [confirm_round(blank(task.spec)) or 0 for task in tasks if task.spec.role is Role.CONFIRM]
    assert max(numbers) <= rounds


def test_a_dear_baseline_does_not_keep_a_first_look_at_others_from_being_launched() -> None:
    """Its trial has all rungs; a launch out of time ends with its first."""
    clock = Clock()
    queue = make_queue(clock=clock, deadline_s=4 * TRIAL_S, confirm_rounds=1)
    task = queue.next_trial()
    assert task is not None
    clock.now = 2.4 * TRIAL_S
    queue.trial_finished(answer(task))
    following = queue.next_trial()
    assert following is not None
    assert following.spec.role is Role.SEARCH


def test_who_was_not_launched_for_want_of_time_is_told_so() -> None:
    clock = Clock()
    queue = make_queue(clock=clock, deadline_s=0.5)
    drive(queue, clock=clock)
    assert {reason for _, reason in queue.never_launched()} == {"the budget of 0.5 s left no time for another launch"}


def confirmed(tasks: Sequence[TrialTask]) -> set[Candidate]:
    return {task.spec.candidate for task in tasks if task.spec.role is Role.CONFIRM}


def test_whoever_was_disturbed_is_measured_again_in_the_confirming_rounds() -> None:
    """The fast one took four times as long in the search, and is the best."""
    tasks = drive(
        make_queue(confirm_rounds=2),
        disturbed=lambda task: task.spec.candidate == FAST and task.spec.role is Role.SEARCH,
    )
    assert FAST in confirmed(tasks)


def test_nobody_fails_a_limit_on_disturbed_runs_alone_while_there_are_rounds_left() -> None:
    tasks = drive(
        make_queue(confirm_rounds=2, limits=Limits(max_ttft_ms=120.0)),
        disturbed=lambda task: task.spec.role is not Role.CONFIRM,
    )
    assert FAST in confirmed(tasks)


def test_near_misses_are_confirmed_where_nothing_keeps_the_limits() -> None:
    tasks = drive(make_queue(confirm_rounds=1, limits=Limits(max_ttft_ms=65.0)))
    assert confirmed(tasks) == {FAST, BASELINE}
    assert confirmed(drive(make_queue(confirm_rounds=1, limits=Limits(max_ttft_ms=50.0)))) == set()


def test_a_machine_that_is_never_quiet_ends_the_sweep_all_the_same() -> None:
    tasks = drive(make_queue(confirm_rounds=3), disturbed=lambda task: True)
    assert max(confirm_round(blank(task.spec)) or 0 for task in tasks) == 3


def test_the_search_is_told_what_was_disturbed_and_which_misses_are_doubtful() -> None:
    sampler = Listening()
    queue = make_queue(sampler=sampler, limits=Limits(max_ttft_ms=95.0))
    for disturbed, factor in ((True, 1.0), (False, 1.0), (False, 2.0)):
        task = queue.next_trial()
        assert task is not None
        queue.trial_finished(answer(task, disturbed=disturbed, factor=factor))
    assert sampler.heard == [(2, True), (2, True), (2, False)]
    assert sampler.disturbed == [True, False, False]
