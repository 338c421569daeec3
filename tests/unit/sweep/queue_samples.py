"""A small sweep without Ray: its queue, and what its trials would leave. The test is the slot."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from kvray.analysis.sampler import EveryCandidate, Sampler
from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import ModelRequest
from kvray.record import Role, Run, TrialRecord, TrialResult, TrialStatus
from kvray.sweep.bounds import Bounds
from kvray.sweep.outlook import Outlook
from kvray.sweep.task_maker import TaskMaker
from kvray.sweep.trial_queue import SweepQueue
from kvray.sweep.trial_task import TrialTask
from kvray.testing.fake import FakeAdapter
from kvray.trial.spec import ReferenceSpec, TrialSpec
from kvray.workload import Limits, create_custom_profile

PROFILE = create_custom_profile(
    "small",
    context_lengths=(16,),
    output_lengths=(4,),
    repeats=2,
    weight_ttft=0.4,
    weight_throughput=0.4,
    weight_memory=0.2,
)
SPACE = [
    Candidate(engine="fake", cache=CacheStrategy.DYNAMIC, attention=attention, dtype=dtype)
    for attention in (AttentionBackend.SDPA, AttentionBackend.EAGER)
    for dtype in (DType.FLOAT32, DType.BFLOAT16)
]
BASELINE, FAST = SPACE[0], SPACE[1]
TTFT_MS = {candidate.candidate_id: 100.0 - 30.0 * (candidate == FAST) for candidate in SPACE}
TRIAL_S = 10.0


class Deaf:
    """Hears of everything and keeps nothing."""

    def trial_started(self, spec: TrialSpec) -> None: ...

    def rung_finished(self, result: TrialResult) -> None: ...

    def trial_lost(self, spec: TrialSpec) -> None: ...

    def trial_finished(self, result: TrialResult) -> None: ...

    def outlook_changed(self, outlook: Outlook) -> None: ...


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_queue(
    *,
    clock: Clock | None = None,
    sampler: Sampler | None = None,
    recorded: Sequence[TrialResult] = (),
    defaults: Sequence[str] = (),
    retry: Sequence[str] = (),
    trial_ids: Mapping[str, str] = MappingProxyType({}),
    trial_suffix: str = "",
    repeats_apart: bool = False,
    deadline_s: float | None = None,
    max_trials: int | None = None,
    confirm_rounds: int = 0,
    limits: Limits | None = None,
    run_id: str = "r",
    gpu_type: str | None = None,
) -> SweepQueue:
    profile = PROFILE if limits is None else PROFILE.model_copy(update={"limits": limits})
    spec = TrialSpec(
        run_id=run_id,
        trial_id="",
        role=Role.BASELINE,
        request=ModelRequest(model_id="fake:ok"),
        candidate=BASELINE,
        profile=profile,
        device=DeviceType.CPU,
        timeout_s=1.0,
        gpu_type=gpu_type,
    )
    return SweepQueue(
        SPACE,
        sampler=sampler or EveryCandidate(SPACE),
        profile=profile,
        make_task=TaskMaker(
            spec,
            reference=ReferenceSpec(candidate=BASELINE, model_revision="1"),
            forecasts={},
            adapters=(FakeAdapter(),),
            threads=None,
            scratch=None,
            trial_suffix=trial_suffix,
            trial_ids=trial_ids,
        ),
        bounds=Bounds(
            deadline_s=deadline_s,
            budget_s=deadline_s or 0.0,
            max_trials=max_trials,
            confirm_rounds=confirm_rounds,
        ),
        recorded=recorded,
        defaults=defaults,
        retry=retry,
        repeats_apart=repeats_apart,
        clock=clock or Clock(),
    )


def answer(
    task: TrialTask, *, status: TrialStatus = TrialStatus.OK, factor: float = 1.0, disturbed: bool = False
) -> TrialResult:
    """What the trial of `task` would leave; a disturbed one takes four times as long."""
    factor *= 4.0 if disturbed else 1.0
    spec = task.spec
    runs = tuple(
        Run(
            run_id=spec.run_id,
            trial_id=spec.trial_id,
            candidate_id=spec.candidate.candidate_id,
            context_tokens=cell.context_tokens,
            output_tokens=cell.output_tokens,
            batch_size=1,
            rung=rung,
            repeat=0,
            ttft_ms=TTFT_MS[spec.candidate.candidate_id] * factor,
            itl_ms=(20.0,) * 3,
            decode_tok_s=50.0 / factor,
            peak_mib=1000.0,
            disturbed=disturbed,
            started_at=dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        )
        for rung in (spec.rungs if status is TrialStatus.OK else ())
        for cell in PROFILE.cells(1, rung=rung)
    )
    record = TrialRecord.of(
        spec.candidate,
        run_id=spec.run_id,
        trial_id=spec.trial_id,
        role=spec.role,
        model_id="fake:ok",
        profile=PROFILE.name,
        status=status,
        rung=spec.rungs[-1] if runs else None,
        wall_s=TRIAL_S,
        gpu_type=spec.gpu_type,
    )
    return TrialResult(record=record, runs=runs)


def drive(
    queue: SweepQueue,
    *,
    clock: Clock | None = None,
    status: Callable[[TrialTask], TrialStatus] | None = None,
    disturbed: Callable[[TrialTask], bool] = lambda task: False,
) -> list[TrialTask]:
    """Run the queue on one slot; all tasks that it gave."""
    tasks = []
    while (task := queue.next_trial()) is not None:
        tasks.append(task)
        assert len(tasks) < 100, "the queue does not end"
        if clock is not None:
            clock.now += TRIAL_S
        ended = status(task) if status else TrialStatus.OK
        queue.trial_finished(answer(task, status=ended, disturbed=disturbed(task)))
    assert queue.is_over
    return tasks


def roles(tasks: Sequence[TrialTask]) -> list[Role]:
    return [task.spec.role for task in tasks]


def blank(spec: TrialSpec) -> TrialRecord:
    return TrialRecord.of(
        spec.candidate,
        run_id=spec.run_id,
        trial_id=spec.trial_id,
        role=spec.role,
        model_id="m",
        profile="p",
        status=TrialStatus.OK,
    )
