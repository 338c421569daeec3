"""What sweeps tell while they run: Tune's callbacks become calls of each one's `SweepObserver`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune
from typing_extensions import override

from kvray.measuring.recording import blank_record
from kvray.record import TrialRecord, TrialResult, TrialStatus
from kvray.sweep.lanes import Lanes
from kvray.sweep.observer import SweepObserver
from kvray.sweep.slot import GOES_ON, RESULT, TASK
from kvray.sweep.trial_task import MOST_ATTEMPTS, TrialTask
from kvray.trial.spec import TrialSpec


class ObserverCallback(tune.Callback):
    """Translates Tune's callbacks.

    Args:
        lanes: know the sweep of each trial, whose observer is told of it and of what is still to come.
        check_alive: asked at every step of Tune's; what it raises ends the sweep.
    """

    def __init__(self, lanes: Lanes, *, check_alive: Callable[[], None]) -> None:
        self._lanes = lanes
        self._check_alive = check_alive
        self._running: dict[str, TrialTask] = {}
        """Tasks by Tune's ids, each from the trial on that runs now."""
        self._latest: dict[str, TrialResult] = {}
        """By Tune's ids, what the trials have measured. Each stays until its end has been told: Ctrl-C may come while
        that is done, and then `break_off` tells it."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks into a state that nobody reads, and consoles do not pickle."""
        return {}

    @override
    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._check_alive()
        self._lanes.attend()

    @override
    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._begin(trial.trial_id, trial.config[TASK])

    @override
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        measured: TrialResult = result[RESULT]
        self._latest[trial.trial_id] = measured
        if result.get("done"):
            self._running.pop(trial.trial_id, None)
        elif GOES_ON in result:
            left = self._running.pop(trial.trial_id).left_from(result[GOES_ON])
            self._tell_end(measured)
            del self._latest[trial.trial_id]
            self._begin(trial.trial_id, left)
        else:
            self._tell(measured.record, lambda observer: observer.rung_finished(measured))

    @override
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that was stopped ends with its last rung's result."""
        self._running.pop(trial.trial_id, None)
        latest = self._latest.get(trial.trial_id)
        if latest is not None:
            self._tell_outlook(latest.record)
            self._tell_end(latest)
            del self._latest[trial.trial_id]
        _forget_results(trial)

    @override
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Only the loss of the slot itself comes here; a trial's own failure is a result."""
        task = self._running.pop(trial.trial_id, trial.config[TASK])
        latest = self._latest.pop(trial.trial_id, None)
        if not task.is_last_attempt:
            self._tell(task.spec, lambda observer: observer.trial_lost(task.spec))
            return
        record = latest.record if latest else blank_record(task.spec, TrialStatus.CRASHED)
        record = record.with_(status=TrialStatus.CRASHED, message=f"the slot that ran it died, {MOST_ATTEMPTS} times")
        self._tell_end(TrialResult(record=record, runs=latest.runs if latest else ()))

    def break_off(self) -> None:
        """The sweep ends before its time: tell of the trials under way, with the rungs that they have finished."""
        for trial_id, task in self._running.items():
            latest = self._latest.pop(trial_id, None)
            record = latest.record if latest else blank_record(task.spec, TrialStatus.INTERRUPTED)
            record = record.with_(status=TrialStatus.INTERRUPTED)
            self._tell_end(TrialResult(record=record, runs=latest.runs if latest else ()))
        for latest in self._latest.values():
            self._tell_end(latest)
        self._running, self._latest = {}, {}
        self._lanes.attend(is_over=True)

    def _begin(self, trial_id: str, task: TrialTask) -> None:
        self._running[trial_id] = task
        self._tell_outlook(task.spec)
        self._tell(task.spec, lambda observer: observer.trial_started(task.spec))

    def _tell_outlook(self, trial: TrialSpec | TrialRecord) -> None:
        queue = self._lanes.of(trial).batch.sweep_of(trial.run_id).queue
        self._tell(trial, lambda observer: observer.outlook_changed(queue.outlook()))

    def _tell_end(self, result: TrialResult) -> None:
        self._tell(result.record, lambda observer: observer.trial_finished(result))

    def _tell(self, trial: TrialSpec | TrialRecord, news: Callable[[SweepObserver], None]) -> None:
        self._lanes.of(trial).batch.tell(trial.run_id, news)


def _forget_results(trial: Any) -> None:
    """Tune keeps every trial until the sweep ends, and then writes all of them into its own state, which nobody reads:
    an ended trial does not need to hold its runs there."""
    trial.run_metadata.last_result = {}
    trial.run_metadata.metric_analysis = {}
    trial.run_metadata.metric_n_steps = {}
