"""Which trials are stopped early: asynchronous successive halving that spares those it cannot judge or will need."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from typing_extensions import override

from kvray.analysis.aggregate import Metrics, aggregate
from kvray.analysis.pareto import covers, is_beaten_clearly
from kvray.measuring.recording import rung_cells
from kvray.record import Role, TrialResult
from kvray.sweep.admission import WAITS_S
from kvray.sweep.lanes import Lanes
from kvray.sweep.slot import FIDELITY, KEEPS_LIMITS, MAY_KEEP_LIMITS, REDUCTION_FACTOR, RESULT, TASK, UTILITY
from kvray.sweep.trial_queue import TrialQueue
from kvray.sweep.trial_task import TrialTask
from kvray.trial.spec import LAST_RUNG

NOISE = 0.08
"""Difference in utility (a logarithm: about 8 %) that one run each cannot establish. Between processes on a shared CPU
the standard deviation was measured as 6 % for TTFT and 1.5 % for tok/s; with weights of 0.5 and 0.35 two of them differ
by less than 0.085 nineteen times in twenty."""
RUNGS: Mapping[str, Any] = {
    "time_attr": FIDELITY,
    "metric": UTILITY,
    "mode": "max",
    "grace_period": 1,
    "max_t": REDUCTION_FACTOR**LAST_RUNG + 1,
    "reduction_factor": REDUCTION_FACTOR,
}
"""A trial's rungs as Tune's halving counts them."""
CHANCE_TO_GO_ON = (0.05, 0.5)
"""Chance to be the best that a trial needs after rung 0 and after rung 1: repeats are for the likely winner."""


class SparingHalving(AsyncHyperBandScheduler):
    """Tune's `AsyncHyperBandScheduler` (ASHA, arXiv:1810.05934) over the rungs of a trial.

    These trials always go on: confirming ones, and the baseline, because every gain is compared with it. All others
    stop at their next rung when the sweep is out of time. What a further engine does with nothing set stops for
    nothing else, because its engine's gain is compared with it. After a disturbed rung a trial goes on, and others are
    not compared with it. After any other rung, the first of these rules that applies decides:

    1. After rung 0, a trial on the rung's Pareto front (TTFT, throughput, memory) by more than noise goes on, because
       lean candidates are fallbacks.
    2. A trial stops if the search's model gives it less than `CHANCE_TO_GO_ON`.
    3. A trial within `NOISE` of the rung's best so far goes on, because single runs cannot tell them apart. If it may
       keep the profile's limits, the best is that of the trials that keep them: the others will not be ranked.
    4. The best third of the rung's trials so far goes on (halving).
    """

    def __init__(self, queue: TrialQueue) -> None:
        super().__init__(**RUNGS)
        self._queue = queue
        self._rungs: defaultdict[int, _Rung] = defaultdict(_Rung)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """The metric is ours, whatever Tune's config says."""
        del metric, mode, spec
        return True

    @override
    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if self._queue.stops_early:
            super().on_trial_add(tune_controller, trial)

    @override
    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Tune compares the trial with all before it, which is of no use where none is stopped."""
        if self._queue.stops_early:
            super().on_trial_complete(tune_controller, trial, result)

    @override
    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        if self._queue.stops_early:
            super().on_trial_remove(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP or CONTINUE after one rung of `trial`."""
        measured: TrialResult = result[RESULT]
        self._queue.rung_finished(measured)
        if measured.record.role is Role.CONFIRM:
            return str(TrialScheduler.CONTINUE)
        # What is never poor is judged too, because later trials are compared with it.
        is_poor = self._queue.stops_early and self._is_poor(tune_controller, trial, result)
        if measured.record.role is Role.BASELINE:
            return str(TrialScheduler.CONTINUE)
        is_poor = is_poor and not self._queue.is_measured_whole(measured.record.candidate_id)
        stops = self._queue.is_out_of_time() or is_poor
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)

    def _is_poor(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> bool:
        """Whether the four rules stop a trial; remembers what it measured, for those that come later."""
        measured: TrialResult = result[RESULT]
        number = measured.record.rung or 0
        cells = rung_cells(measured.runs, measured.record.rung)
        if not cells or any(cell.is_disturbed for cell in cells):
            return False
        rung, metrics, utility = self._rungs[number], aggregate(cells), result[UTILITY]
        is_halved = super().on_trial_result(tune_controller, trial, result) == TrialScheduler.STOP
        is_on_front = rung.is_on_front(metrics)
        rung.add(metrics, utility, keeps_limits=result[KEEPS_LIMITS])
        if number == 0 and is_on_front:
            return False
        if self._queue.win_chance(measured.record.candidate_id) < CHANCE_TO_GO_ON[number]:
            return True
        best = rung.best_within_limits if result[MAY_KEEP_LIMITS] else rung.best
        if utility > best - NOISE:
            return False
        return is_halved


@dataclass(kw_only=True)
class _Rung:
    """What the trials of a sweep have measured at one rung. Disturbed trials are not included.

    Attributes:
        best, best_within_limits: highest utility of all, and of those that keep the profile's limits.
    """

    best: float = -math.inf
    best_within_limits: float = -math.inf
    _front: list[Metrics] = field(default_factory=list)
    """Without those that another one covers: whoever they beat, that one beats as well."""

    def is_on_front(self, metrics: Metrics) -> bool:
        """Whether no trial so far is better than `metrics` by more than noise in every respect."""
        return not any(is_beaten_clearly(metrics, other) for other in self._front)

    def add(self, metrics: Metrics, utility: float, *, keeps_limits: bool) -> None:
        """A trial has completed the rung."""
        if not any(covers(other, metrics) for other in self._front):
            self._front = [*(other for other in self._front if not covers(metrics, other)), metrics]
        self.best = max(self.best, utility)
        if keeps_limits:
            self.best_within_limits = max(self.best_within_limits, utility)


class HalvingPerSweep(FIFOScheduler):
    """A `SparingHalving` for each sweep of a batch and each type of GPU: trials are held against those of their own
    sweep and type alone."""

    def __init__(self, lanes: Lanes, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._metric = UTILITY
        self._lanes = lanes
        self._halvings: dict[tuple[str, str | None], SparingHalving] = {}
        self._clock = clock
        self._waiting: dict[Any, float] = {}
        """When each trial that has not begun was added, the first one first."""
        self._new: list[Any] = []
        """Those for which no slot has been looked for yet."""

    @override
    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        del metric, mode, spec
        return True

    @override
    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._waiting[trial] = self._clock()
        self._new.append(trial)
        self._of(trial).on_trial_add(tune_controller, trial)

    @override
    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        task: TrialTask = trial.config[TASK]
        return self._lanes.of(task.spec).batch.decide(
            task.spec.run_id,
            lambda: self._of(trial).on_trial_result(tune_controller, trial, result),
            otherwise=str(TrialScheduler.STOP),
        )

    @override
    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    @override
    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_error(tune_controller, trial)

    @override
    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_remove(tune_controller, trial)

    @override
    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The trial that gets a free slot, if there is one. Tune asks at every step.

        A new one comes first. Those before it have a slot each that is still starting, and Tune gives up that start
        when it puts the trial elsewhere: while trials are shorter than a start, no further slot would come up. A trial
        whose slot does not start is put first after `WAITS_S`. One whose node has died before it could start would wait
        for it for ever: it is given back to its queue.
        """
        for trial in list(self._waiting):
            if trial.status == Trial.PENDING and self._is_stranded(trial.config[TASK]):
                tune_controller.stop_trial(trial)
            if trial.status != Trial.PENDING:
                del self._waiting[trial]
        new, self._new = [trial for trial in self._new if trial in self._waiting], []
        first = next(iter(self._waiting), None)
        if first is None or not new or self._clock() - self._waiting[first] > WAITS_S:
            return first
        return new[0]

    def _is_stranded(self, task: TrialTask) -> bool:
        return self._lanes.of(task.spec).admission.is_stranded(task)

    def _of(self, trial: Any) -> SparingHalving:
        task: TrialTask = trial.config[TASK]
        run_id, key = task.spec.run_id, (task.spec.run_id, task.spec.gpu_type)
        if key not in self._halvings:
            self._halvings[key] = SparingHalving(self._lanes.of(task.spec).batch.sweep_of(run_id).queue)
        return self._halvings[key]
