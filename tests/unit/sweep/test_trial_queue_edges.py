"""A sweep that was broken off, two slots at the same time, and bounds that leave next to nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from queue_samples import BASELINE, FAST, PROFILE, SPACE, TRIAL_S, Clock, answer, blank, drive, make_queue, roles

from kvray.analysis.bayesian import BayesianSampler
from kvray.analysis.evidence import confirm_round
from kvray.analysis.sampler import EveryCandidate, Sampler
from kvray.config import SearchStrategy
from kvray.measuring.recording import blank_record
from kvray.record import Role, TrialResult, TrialStatus
from kvray.sweep.samplers import make_sampler
from kvray.sweep.trial_queue import SweepQueue
from kvray.sweep.trial_task import TrialTask


def launches_of(search: SearchStrategy) -> Sampler:
    return make_sampler(search, SPACE, PROFILE, {}, axes=(), seed=0)


def of_confirming(tasks: Sequence[TrialTask]) -> list[tuple[int | None, str]]:
    """Round and candidate of each."""
    again = [task.spec for task in tasks if task.spec.role is Role.CONFIRM]
    return [(confirm_round(blank(spec)), spec.candidate.candidate_id) for spec in again]


@pytest.fixture(scope="module")
def finished() -> list[TrialResult]:
    """A sweep of two confirming rounds."""
    return [answer(task) for task in drive(make_queue(confirm_rounds=2))]


# Resuming


@pytest.mark.parametrize("search", SearchStrategy)
def test_a_baseline_that_is_not_recorded_is_measured_next(search: SearchStrategy, finished: list[TrialResult]) -> None:
    tasks = drive(make_queue(sampler=launches_of(search), recorded=finished[1:3]))
    assert tasks[0].spec.candidate == BASELINE
    assert tasks[0].spec.role is Role.BASELINE


def test_neither_budget_nor_most_trials_keep_a_missing_baseline_away(finished: list[TrialResult]) -> None:
    clock = Clock()
    recorded = finished[1:3]
    tasks = drive(make_queue(recorded=recorded, deadline_s=0.0, max_trials=1, clock=clock), clock=clock)
    assert roles(tasks) == [Role.BASELINE]


def test_a_failed_baseline_is_not_tried_again_and_the_others_are_measured(finished: list[TrialResult]) -> None:
    first = finished[0]
    failed = TrialResult(record=first.record.with_(status=TrialStatus.OOM, rung=None), runs=())
    assert [task.spec.candidate for task in drive(make_queue(recorded=[failed]))] == SPACE[1:]


def test_a_finished_sweep_goes_on_with_nothing(finished: list[TrialResult]) -> None:
    assert drive(make_queue(recorded=finished, confirm_rounds=2)) == []


@pytest.mark.parametrize("kept", range(1, 4))
def test_a_round_that_was_broken_off_is_ended_before_the_next_one(kept: int, finished: list[TrialResult]) -> None:
    search = [one for one in finished if one.record.role is not Role.CONFIRM]
    again = [one for one in finished if one.record.role is Role.CONFIRM]
    first_round = {one.record.trial_id for one in again if confirm_round(one.record) == 1}
    assert len(first_round) > 1
    tasks = drive(make_queue(recorded=[*search, *again[:kept]], confirm_rounds=2))
    assert [task.spec.trial_id for task in tasks] == [one.record.trial_id for one in again[kept:]]


def test_a_round_that_was_broken_off_is_left_so_when_nothing_is_to_be_confirmed(finished: list[TrialResult]) -> None:
    assert drive(make_queue(recorded=finished[:-1], confirm_rounds=0)) == []


def test_a_search_that_may_go_further_does_so_before_it_is_confirmed_further(finished: list[TrialResult]) -> None:
    recorded = [one for one in finished if one.record.candidate_id != SPACE[3].candidate_id]
    tasks = drive(make_queue(recorded=recorded, confirm_rounds=2))
    assert tasks[0].spec.candidate == SPACE[3]
    assert tasks[0].spec.role is Role.SEARCH
    numbers = [number for number, _ in of_confirming(tasks)]
    assert set(numbers) <= {1, 2}


# Two slots


def two_slots(queue: SweepQueue) -> list[TrialTask]:
    """Run it on two slots, the older trial ending first; all orders."""
    tasks: list[TrialTask] = []
    running: list[TrialTask] = []
    while True:
        while len(running) < 2 and (task := queue.next_trial()) is not None:
            running.append(task)
            tasks.append(task)
            assert len(tasks) < 100, "the queue does not end"
        if not running:
            assert queue.is_over, "nothing runs, nothing comes, and it is not over: Tune would wait for ever"
            return tasks
        queue.trial_finished(answer(running.pop(0)))


@pytest.mark.parametrize("search", SearchStrategy)
@pytest.mark.parametrize("max_trials", [None, 1, 3])
def test_two_slots_launch_nobody_twice_and_come_to_an_end(search: SearchStrategy, max_trials: int | None) -> None:
    queue = make_queue(sampler=launches_of(search), confirm_rounds=3, max_trials=max_trials)
    tasks = two_slots(queue)
    assert len({task.spec.trial_id for task in tasks}) == len(tasks)
    searched = [task.spec.candidate for task in tasks if task.spec.role is not Role.CONFIRM]
    assert searched[0] == BASELINE
    assert len(set(searched)) == len(searched) == min(max_trials or len(SPACE), len(SPACE))


def test_two_slots_of_which_one_dies_with_every_trial_come_to_an_end() -> None:
    queue = make_queue(confirm_rounds=3)
    for _ in range(100):
        task, other = queue.next_trial(), queue.next_trial()
        if task is None:
            break
        queue.trial_lost(task)
        if other is not None:
            queue.trial_finished(answer(other))
    assert queue.is_over


# Next to nothing


def test_the_baseline_alone_is_confirmed_by_nothing() -> None:
    assert roles(drive(make_queue(max_trials=1, confirm_rounds=4))) == [Role.BASELINE]


def test_time_that_ends_during_the_search_leaves_the_other_slot_s_trial_to_end() -> None:
    clock = Clock()
    queue = make_queue(clock=clock, deadline_s=3 * TRIAL_S)
    first, second = queue.next_trial(), queue.next_trial()
    assert first is not None
    assert second is not None
    queue.trial_finished(answer(first))
    clock.now = 4 * TRIAL_S
    assert queue.next_trial() is None
    assert not queue.is_over
    queue.trial_finished(answer(second))
    assert queue.next_trial() is None
    assert queue.is_over


def test_a_round_for_which_there_is_no_time_is_not_begun(finished: list[TrialResult]) -> None:
    search = [one for one in finished if one.record.role is not Role.CONFIRM]
    assert drive(make_queue(recorded=search, confirm_rounds=2, deadline_s=1.5 * TRIAL_S)) == []


def test_the_first_round_has_who_may_win_by_the_search_s_model() -> None:
    class Believing(EveryCandidate):
        def contenders(self) -> tuple[str, ...]:
            return (SPACE[3].candidate_id,)

    tasks = drive(make_queue(sampler=Believing(SPACE), confirm_rounds=1))
    assert {key for _, key in of_confirming(tasks)} >= {one.candidate_id for one in (BASELINE, FAST, SPACE[3])}


def test_a_space_of_the_baseline_alone_ends(finished: list[TrialResult]) -> None:
    search = BayesianSampler(SPACE[:1], profile=PROFILE)
    search.launched(BASELINE.candidate_id)
    assert search.proposal() is None
    assert search.predictions() == ()


def test_a_records_column_names_its_confirming_round_and_an_older_one_is_known_by_its_trials_id() -> None:
    tasks = drive(make_queue(confirm_rounds=1))
    searched = [
        blank_record(task.spec, TrialStatus.OK).confirm_round for task in tasks if task.spec.role is not Role.CONFIRM
    ]
    confirming = [blank_record(task.spec, TrialStatus.OK) for task in tasks if task.spec.role is Role.CONFIRM]
    assert set(searched) == {None}
    assert {record.confirm_round for record in confirming} == {1}
    renamed = confirming[0].with_(trial_id="any-other-name")
    assert confirm_round(renamed) == 1
    assert confirm_round(confirming[0].with_(confirm_round=None)) == 1
    assert confirm_round(renamed.with_(confirm_round=None)) is None
