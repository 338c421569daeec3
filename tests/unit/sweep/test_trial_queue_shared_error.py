"""An error that is no candidate's is paid for twice, not by every candidate; one that may be a candidate's own ends
nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from queue_samples import BASELINE, SPACE, answer, make_queue

from kvray.candidate import AttentionBackend, Candidate, DType
from kvray.record import Phase, TrialRecord, TrialResult, TrialStatus
from kvray.sweep.trial_queue import SweepQueue
from kvray.sweep.trial_task import TrialTask

LEAST_ALIKE = SPACE[3]
Ending = tuple[TrialStatus, Phase, str]
LOST_FILE: Ending = (TrialStatus.ERROR, Phase.LOAD, "ModelError: The weights cannot be read.")


def ended(task: TrialTask, ending: Ending | None) -> TrialResult:
    """What a trial leaves that ends so; `None`: it measures everything."""
    if ending is None:
        return answer(task)
    status, phase, message = ending
    failed = answer(task, status=status)
    return TrialResult(record=failed.record.with_(phase=phase, message=message), runs=())


def drive(queue: SweepQueue, ending: Callable[[Candidate], Ending | None]) -> list[Candidate]:
    """Run the queue on one slot; who was launched."""
    launched = []
    while (task := queue.next_trial()) is not None:
        launched.append(task.spec.candidate)
        assert len(launched) < 50, "the queue does not end"
        queue.trial_finished(ended(task, ending(task.spec.candidate)))
    assert queue.is_over
    return launched


@pytest.mark.parametrize(
    "ending",
    [
        LOST_FILE,
        (TrialStatus.ERROR, Phase.WARMUP, "IndexError: index out of range in self"),
        (TrialStatus.UNSUPPORTED, Phase.LOAD, "This model requires the package einops."),
        (TrialStatus.CRASHED, Phase.LOAD, "killed by SIGILL"),
        (TrialStatus.TIMEOUT, Phase.LOAD, "the phase load took longer than 600 s"),
    ],
)
def test_what_ends_the_baseline_and_the_least_alike_ends_the_sweep(ending: Ending) -> None:
    queue = make_queue()
    assert drive(queue, lambda candidate: ending) == [BASELINE, LEAST_ALIKE]
    left = queue.never_launched()
    assert [one for one, _ in left] == [SPACE[1], SPACE[2]]
    assert all("the same error ended every trial before it" in reason for _, reason in left)


def test_addresses_and_numbers_do_not_make_it_another_error() -> None:
    def ending(candidate: Candidate) -> Ending:
        number = SPACE.index(candidate)
        return TrialStatus.ERROR, Phase.LOAD, f"RuntimeError: no tensor {number}7 at 0x7f{number}a0"

    assert drive(make_queue(), ending) == [BASELINE, LEAST_ALIKE]


@pytest.mark.parametrize(
    "ending",
    [
        (TrialStatus.OOM, Phase.LOAD, "CUDA out of memory"),
        (TrialStatus.SUBSTITUTED, Phase.WARMUP, "it was not used as a cache"),
        (TrialStatus.UNSUPPORTED, Phase.WARMUP, "no kernel"),
        (TrialStatus.CRASHED, Phase.MEASURE, "killed by SIGSEGV"),
        (TrialStatus.TIMEOUT, Phase.WARMUP, "the phase warmup took longer than 600 s"),
    ],
)
def test_what_another_cache_may_escape_is_tried_by_all(ending: Ending) -> None:
    assert drive(make_queue(), lambda candidate: ending) == SPACE


def test_what_one_attention_cannot_do_ends_nothing() -> None:
    def ending(candidate: Candidate) -> Ending | None:
        unsupported = (TrialStatus.UNSUPPORTED, Phase.LOAD, "LlamaForCausalLM does not support sdpa")
        return unsupported if candidate.attention is AttentionBackend.SDPA else None

    assert drive(make_queue(), ending) == [BASELINE, LEAST_ALIKE, SPACE[1], SPACE[2]]


def test_what_one_dtype_cannot_do_ends_nothing() -> None:
    def ending(candidate: Candidate) -> Ending | None:
        mixed = (TrialStatus.ERROR, Phase.WARMUP, "RuntimeError: expected m1 and m2 to have the same dtype")
        return mixed if candidate.dtype is DType.FLOAT32 else None

    assert set(drive(make_queue(), ending)) == set(SPACE)


def test_another_error_of_the_least_alike_ends_nothing() -> None:
    def ending(candidate: Candidate) -> Ending:
        return TrialStatus.ERROR, Phase.LOAD, f"RuntimeError: no {candidate.attention}"

    assert set(drive(make_queue(), ending)) == set(SPACE)


def test_a_baseline_that_was_measured_in_part_does_not_count() -> None:
    queue = make_queue()
    launched = []
    while (task := queue.next_trial()) is not None:
        launched.append(task.spec.candidate)
        result = ended(task, LOST_FILE)
        queue.trial_finished(TrialResult(record=result.record.with_(rung=0), runs=()))
    assert launched == SPACE


def test_with_two_slots_what_runs_is_waited_for_and_nobody_else_is_launched() -> None:
    queue = make_queue()
    first, second = queue.next_trial(), queue.next_trial()
    assert first is not None
    assert second is not None
    queue.trial_finished(ended(first, LOST_FILE))
    witness = queue.next_trial()
    assert witness is not None
    assert witness.spec.candidate == LEAST_ALIKE
    queue.trial_finished(ended(second, LOST_FILE))
    assert queue.next_trial() is None
    assert not queue.is_over
    queue.trial_finished(ended(witness, LOST_FILE))
    assert queue.next_trial() is None
    assert queue.is_over


def test_a_witness_whose_slot_dies_for_good_does_not_hold_up_the_sweep() -> None:
    queue = make_queue()
    baseline = queue.next_trial()
    assert baseline is not None
    queue.trial_finished(ended(baseline, LOST_FILE))
    while (task := queue.next_trial()) is not None and task.spec.candidate == LEAST_ALIKE:
        queue.trial_lost(task)
    assert task is not None
    assert task.spec.candidate in SPACE[1:3]


def records_of_both() -> list[TrialResult]:
    queue = make_queue()
    found = []
    while (task := queue.next_trial()) is not None:
        found.append(ended(task, LOST_FILE))
        queue.trial_finished(found[-1])
    return found


def test_a_resumed_sweep_ends_at_once_unless_the_failures_are_retried() -> None:
    recorded = records_of_both()
    assert drive(make_queue(recorded=recorded), lambda candidate: None) == []
    retry = [one.record.candidate_id for one in recorded]
    assert set(drive(make_queue(retry=retry), lambda candidate: None)) == set(SPACE)


def test_a_candidate_that_was_never_launched_is_no_witness() -> None:
    rejected = TrialRecord.of(
        LEAST_ALIKE,
        run_id="r",
        trial_id="u",
        role=records_of_both()[1].record.role,
        model_id="m",
        profile="p",
        status=TrialStatus.REJECTED,
    )
    recorded = [records_of_both()[0], TrialResult(record=rejected, runs=())]
    assert drive(make_queue(recorded=recorded), lambda candidate: LOST_FILE) == [LEAST_ALIKE]
