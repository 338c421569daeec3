"""The driver's work per trial does not grow with the number of trials that have ended: counted, not timed."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from queue_samples import PROFILE, SPACE, TTFT_MS, answer

from kvray.analysis.aggregate import Metrics
from kvray.analysis.pareto import is_beaten_clearly
from kvray.analysis.sampler import EveryCandidate
from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import ModelRequest
from kvray.record import Role
from kvray.sweep.bounds import Bounds
from kvray.sweep.scheduler import _Rung
from kvray.sweep.task_maker import TaskMaker
from kvray.sweep.trial_queue import SweepQueue
from kvray.testing.fake import FakeAdapter
from kvray.trial.spec import ReferenceSpec, TrialSpec

TRIALS = 400
MANY = [
    SPACE[0],
    *(
        Candidate(engine="fake", cache=one.cache, attention=one.attention, dtype=one.dtype, settings=(("tile", tile),))
        for one in SPACE
        for tile in range(1, TRIALS // len(SPACE))
    ),
]


def make_queue() -> SweepQueue:
    spec = TrialSpec(
        run_id="r",
        trial_id="",
        role=Role.BASELINE,
        request=ModelRequest(model_id="fake:ok"),
        candidate=MANY[0],
        profile=PROFILE,
        device=DeviceType.CPU,
        timeout_s=1.0,
    )
    tasks = TaskMaker(
        spec,
        reference=ReferenceSpec(candidate=MANY[0], model_revision="1"),
        forecasts={},
        adapters=(FakeAdapter(),),
        threads=None,
        scratch=None,
    )
    bounds = Bounds(deadline_s=None, budget_s=0.0, max_trials=None, confirm_rounds=0)
    return SweepQueue(MANY, sampler=EveryCandidate(MANY), profile=PROFILE, make_task=tasks, bounds=bounds)


def lines_run(do: Callable[[], object]) -> int:
    """How many lines of Python are run, each turn of a comprehension included."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        do()
    finally:
        sys.settrace(before)
    return count


def one_trial(queue: SweepQueue) -> None:
    task = queue.next_trial()
    assert task is not None
    TTFT_MS.setdefault(task.spec.candidate.candidate_id, 100.0)
    queue.outlook()
    queue.trial_finished(answer(task))
    queue.outlook()


def test_a_trial_costs_the_queue_as_much_after_hundreds_as_after_a_few() -> None:
    queue = make_queue()
    costs = [lines_run(lambda: one_trial(queue)) for _ in range(TRIALS - 50)]
    early, late = max(costs[20:40]), max(costs[-20:])
    assert late <= early + 20, "it looks at earlier trials again"


def metrics(ttft_ms: float, peak_mib: float | None) -> Metrics:
    return Metrics(
        ttft_ms=ttft_ms, itl_p50_ms=1, itl_p95_ms=1, itl_p99_ms=1, decode_tok_s=5000 / ttft_ms, peak_mib=peak_mib
    )


def test_a_rung_remembers_only_trials_that_no_other_covers() -> None:
    rung = _Rung()
    seen = [metrics(100 + 7 * number % 90, [None, 400.0, 500.0][number % 3]) for number in range(200)]
    for place, one in enumerate(seen):
        assert rung.is_on_front(one) == (not any(is_beaten_clearly(one, other) for other in seen[:place]))
        rung.add(one, 0.0, keeps_limits=True)
    assert len(rung._front) <= 3


def test_tune_copies_and_names_a_task_at_little_cost() -> None:
    task = make_queue().next_trial()
    assert task is not None
    assert copy.deepcopy({"task": task})["task"] is task
    assert str(task) == task.spec.trial_id
