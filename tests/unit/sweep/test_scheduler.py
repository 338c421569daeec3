from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

import pytest
from queue_samples import Clock, Deaf, make_queue
from ray.tune.schedulers import TrialScheduler

from kvray.analysis.score import utility
from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.measuring.recording import rung_metrics
from kvray.record import Role, Run, TrialRecord, TrialResult, TrialStatus
from kvray.sweep.admission import WAITS_S, Admission
from kvray.sweep.batch import QueuedSweep, SweepBatch
from kvray.sweep.capacity import Room
from kvray.sweep.lanes import Lane, Lanes
from kvray.sweep.outlook import Outlook
from kvray.sweep.scheduler import HalvingPerSweep, SparingHalving
from kvray.sweep.slot import FIDELITY, KEEPS_LIMITS, MAY_KEEP_LIMITS, REDUCTION_FACTOR, RESULT, TASK, UTILITY
from kvray.sweep.trial_task import TrialTask
from kvray.workload import get_profile

PROFILE = get_profile("ci-micro")
CANDIDATE = Candidate(engine="fake", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32)


class FakeTrial:
    """What the base scheduler asks of a Tune trial."""

    def __init__(self, trial_id: str, task: TrialTask | None = None) -> None:
        self.trial_id = trial_id
        self.config = {TASK: task}
        self.status = "PENDING"


def report(
    ttft_ms: float,
    tok_s: float,
    peak_mib: float,
    *,
    rung: int = 0,
    role: Role = Role.SEARCH,
    keeps_limits: bool = True,
    may_keep_limits: bool | None = None,
    disturbed: bool = False,
) -> dict[str, Any]:
    run = Run(
        run_id="r",
        trial_id="t",
        candidate_id="c",
        context_tokens=512,
        output_tokens=16,
        batch_size=1,
        rung=rung,
        repeat=0,
        ttft_ms=ttft_ms,
        itl_ms=(1.0,),
        decode_tok_s=tok_s,
        peak_mib=peak_mib,
        disturbed=disturbed,
        started_at=dt.datetime.now(dt.UTC),
    )
    record = TrialRecord.of(
        CANDIDATE,
        run_id="r",
        trial_id="t",
        role=role,
        model_id="m",
        profile=PROFILE.name,
        status=TrialStatus.STOPPED,
        rung=rung,
    )
    metrics = rung_metrics((run,), rung)
    assert metrics is not None
    return {
        RESULT: TrialResult(record=record, runs=(run,)),
        UTILITY: utility(metrics, PROFILE),
        KEEPS_LIMITS: keeps_limits,
        MAY_KEEP_LIMITS: keeps_limits if may_keep_limits is None else may_keep_limits,
        FIDELITY: REDUCTION_FACTOR**rung,
        "done": False,
    }


@dataclass
class Stub:
    """A queue that believes what the test says."""

    chance: float = 1.0
    stops_early: bool = True
    out_of_time: bool = False
    is_over: bool = False
    whole: bool = False

    def next_trial(self) -> TrialTask | None:
        return None

    def rung_finished(self, result: TrialResult) -> None: ...

    def trial_finished(self, result: TrialResult) -> None: ...

    def trial_lost(self, task: TrialTask) -> None: ...

    def trial_spared(self, task: TrialTask) -> None: ...

    def is_out_of_time(self) -> bool:
        return self.out_of_time

    def outlook(self) -> Outlook:
        return Outlook()

    def win_chance(self, candidate_id: str) -> float:
        return self.chance

    def is_measured_whole(self, candidate_id: str) -> bool:
        return self.whole


def verdicts(*reports: dict[str, Any], queue: Stub | None = None) -> list[bool]:
    """Whether each trial, reporting in turn, may go on."""
    scheduler = SparingHalving(queue or Stub())
    answers = []
    for number, one in enumerate(reports):
        trial = FakeTrial(str(number))
        scheduler.on_trial_add(None, trial)
        answers.append(scheduler.on_trial_result(None, trial, one) == TrialScheduler.CONTINUE)
    return answers


GOOD = report(100, 50, 500)


def test_a_trial_that_is_worse_in_everything_is_stopped() -> None:
    assert verdicts(GOOD, GOOD, report(200, 25, 600)) == [True, True, False]


def test_the_baseline_is_never_stopped() -> None:
    assert verdicts(GOOD, GOOD, report(400, 10, 900, role=Role.BASELINE))[-1]


def test_what_an_engine_does_with_nothing_set_is_measured_to_its_end_but_for_want_of_time() -> None:
    poor = report(400, 10, 900)
    assert verdicts(GOOD, GOOD, poor, queue=Stub(whole=True))[-1]
    assert not verdicts(GOOD, GOOD, poor, queue=Stub(whole=True, out_of_time=True))[-1]


def test_whoever_is_leanest_goes_on_however_slow() -> None:
    assert verdicts(GOOD, GOOD, report(400, 10, 480))[-1]


def test_a_saving_of_memory_that_makes_no_fallback_spares_nobody() -> None:
    assert not verdicts(GOOD, GOOD, report(400, 10, 495))[-1]


def test_the_leanest_goes_no_further_than_every_full_length_cell() -> None:
    full = report(100, 50, 500, rung=1)
    assert not verdicts(full, full, report(400, 10, 400, rung=1))[-1]


def test_whom_the_model_gives_no_chance_is_stopped_however_near() -> None:
    near = report(105, 49, 505)
    assert verdicts(GOOD, near, queue=Stub(chance=0.06))[-1]
    assert not verdicts(GOOD, near, queue=Stub(chance=0.04))[-1]


def test_repeats_are_for_the_likely_winner() -> None:
    full, near = report(100, 50, 500, rung=1), report(101, 50, 500, rung=1)
    assert verdicts(full, near, queue=Stub(chance=0.6))[-1]
    assert not verdicts(full, near, queue=Stub(chance=0.4))[-1]


def test_nobody_is_stopped_in_a_grid() -> None:
    assert verdicts(GOOD, GOOD, report(200, 25, 600), queue=Stub(stops_early=False, chance=0.0)) == [True] * 3


def test_a_sweep_out_of_time_ends_its_trials_but_not_the_baseline() -> None:
    late = Stub(out_of_time=True, stops_early=False)
    assert verdicts(report(100, 50, 500, role=Role.BASELINE), GOOD, queue=late) == [True, False]


def test_a_confirming_trial_is_never_stopped() -> None:
    assert verdicts(GOOD, GOOD, report(400, 10, 900, rung=1, role=Role.CONFIRM), queue=Stub(chance=0.0))[-1]


def test_what_a_single_run_cannot_tell_apart_from_the_best_goes_on() -> None:
    assert verdicts(GOOD, GOOD, GOOD, report(105, 49, 501))[-1]
    assert not verdicts(GOOD, GOOD, GOOD, report(125, 45, 501))[-1]


def test_rungs_are_compared_with_their_own_kind() -> None:
    slower_at_full_length = report(150, 30, 550, rung=1)
    assert verdicts(GOOD, GOOD, slower_at_full_length)[-1], "the first of its rung"


def test_the_best_of_those_that_keep_the_limits_goes_on_beside_better_ones_that_do_not() -> None:
    beyond = report(100, 50, 500, keeps_limits=False)
    assert verdicts(beyond, beyond, report(200, 25, 600)) == [True, True, True]
    assert verdicts(beyond, beyond, report(200, 25, 600), report(400, 12, 600))[-1] is False


def test_whoever_misses_a_limit_gets_no_favour_from_it() -> None:
    assert verdicts(GOOD, GOOD, report(200, 25, 600, keeps_limits=False))[-1] is False


@pytest.mark.parametrize("rung", [0, 1])
def test_nobody_is_stopped_for_what_disturbed_runs_alone_have_shown(rung: int) -> None:
    good, slow = report(100, 50, 500, rung=rung), report(900, 5, 600, rung=rung, disturbed=True)
    assert verdicts(good, good, good, slow, queue=Stub(chance=0.0))[-1]
    assert not verdicts(good, good, good, slow, queue=Stub(out_of_time=True))[-1], "out of time"


def test_a_trial_that_has_completed_no_rung_goes_on() -> None:
    record = report(1, 1, 1)[RESULT].record.with_(rung=None)
    nothing = {RESULT: TrialResult(record=record, runs=()), "done": False}
    assert verdicts(GOOD, GOOD, nothing, queue=Stub(chance=0.0))[-1]


def test_nobody_is_held_against_what_was_disturbed() -> None:
    lucky = report(50, 100, 400, disturbed=True)
    assert verdicts(lucky, lucky, lucky, report(200, 25, 600))[-1]


def test_whoever_may_keep_the_limits_is_held_against_the_best_of_those_that_do() -> None:
    beyond, near = (
        report(100, 50, 500, keeps_limits=False),
        report(200, 25, 600, keeps_limits=False, may_keep_limits=True),
    )
    assert verdicts(beyond, beyond, near) == [True, True, True]
    keeper = report(210, 24, 600)
    assert verdicts(beyond, beyond, near, keeper)[-1], "a miss that is not certain shuts out nobody that keeps them"


def test_a_trial_is_held_against_those_of_its_own_sweep_alone() -> None:
    batch = SweepBatch([QueuedSweep(queue=make_queue(run_id=name), observer=Deaf()) for name in ("fast", "slow")])
    lane = Lane(batch=batch, admission=Admission(batch, room=lambda: Room(slots=8)))
    scheduler = HalvingPerSweep(Lanes({None: lane}))
    tasks = [batch.next_trial() for _ in range(8)]
    fast, slow = ([one for one in tasks if one and one.spec.run_id == name] for name in ("fast", "slow"))

    def verdict(task: TrialTask, given: dict[str, Any]) -> bool:
        trial = FakeTrial(task.spec.trial_id, task)
        scheduler.on_trial_add(None, trial)
        record = given[RESULT].record.with_(run_id=task.spec.run_id)
        result = {**given, RESULT: TrialResult(record=record, runs=given[RESULT].runs)}
        return bool(scheduler.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE)

    beaten = report(200, 25, 600)
    assert [verdict(task, GOOD) for task in fast[:2]] == [True, True]
    assert not verdict(fast[2], beaten)
    assert verdict(slow[1], beaten), "the first of its own sweep"


def test_a_new_trial_gets_a_free_slot_before_those_whose_own_slots_are_starting() -> None:
    clock = Clock()
    batch = SweepBatch([QueuedSweep(queue=make_queue(), observer=Deaf())])
    lane = Lane(batch=batch, admission=Admission(batch, room=lambda: Room(slots=8)))
    scheduler = HalvingPerSweep(Lanes({None: lane}), clock=clock)
    first, second, third, fourth = [
        FakeTrial(str(number), task) for number in range(4) if (task := batch.next_trial()) is not None
    ]

    def chosen() -> FakeTrial | None:
        # There is no controller to ask for all trials of the sweep.
        trial: FakeTrial | None = scheduler.choose_trial_to_run(None)
        return trial

    for trial in (first, second):
        scheduler.on_trial_add(None, trial)
    assert [chosen(), chosen()] == [first, first], "slots are looked for in the order in which trials come"
    first.status = "RUNNING"
    scheduler.on_trial_add(None, third)
    assert [chosen(), chosen()] == [third, second], "what nobody new takes goes to the trial that waits longest"
    third.status = "RUNNING"
    clock.now += WAITS_S + 1
    scheduler.on_trial_add(None, fourth)
    assert chosen() is second, "its own slot does not start"
    second.status = fourth.status = "RUNNING"
    assert chosen() is None


def test_where_no_trial_is_stopped_none_is_compared_with_those_before_it() -> None:
    queue = make_queue()
    queue.stops_early = False
    scheduler = SparingHalving(queue)
    before = scheduler.debug_string()
    for number in range(3):
        trial = FakeTrial(str(number))
        scheduler.on_trial_add(None, trial)
        scheduler.on_trial_complete(None, trial, report(100, 50, 500, rung=2))
    assert scheduler.debug_string() == before
