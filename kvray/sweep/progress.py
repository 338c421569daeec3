"""What a sweep tells while it runs: Tune's callbacks become calls of a `SweepObserver`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune
from typing_extensions import override

from kvray.record import TrialResult, TrialStatus
from kvray.sweep.observer import SweepObserver
from kvray.sweep.outlook import Outlook
from kvray.sweep.recording import blank_record
from kvray.sweep.slot import RESULT, TASK
from kvray.sweep.trial_task import MOST_ATTEMPTS, TrialTask
from kvray.trial.spec import TrialSpec


class ObserverCallback(tune.Callback):
    """Translates Tune's callbacks.

    Args:
        outlook: what is still to come.
        check_alive: asked at every step of Tune's; what it raises ends the sweep.
    """

    def __init__(
        self, observer: SweepObserver, *, outlook: Callable[[], Outlook], check_alive: Callable[[], None]
    ) -> None:
        self._observer = observer
        self._outlook = outlook
        self._check_alive = check_alive
        self._running: dict[str, TrialSpec] = {}
        self._latest: dict[str, TrialResult] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks into a state that nobody reads, and consoles do not pickle."""
        return {}

    @override
    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._check_alive()

    @override
    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._running[trial.trial_id] = trial.config[TASK].spec
        self._observer.outlook_changed(self._outlook())
        self._observer.trial_started(trial.config[TASK].spec)

    @override
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._latest[trial.trial_id] = result[RESULT]
        if result.get("done"):
            self._running.pop(trial.trial_id, None)
        else:
            self._observer.rung_finished(result[RESULT])

    @override
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that was stopped ends with its last rung's result."""
        self._running.pop(trial.trial_id, None)
        latest = self._latest.pop(trial.trial_id, None)
        if latest is not None:
            self._observer.outlook_changed(self._outlook())
            self._observer.trial_finished(latest)

    @override
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Only the loss of the slot itself comes here; a trial's own failure is a result."""
        self._running.pop(trial.trial_id, None)
        latest = self._latest.pop(trial.trial_id, None)
        task: TrialTask = trial.config[TASK]
        if not task.is_last_attempt:
            self._observer.trial_lost(task.spec)
            return
        record = latest.record if latest else blank_record(task.spec, TrialStatus.CRASHED)
        record = record.with_(status=TrialStatus.CRASHED, message=f"the slot that ran it died, {MOST_ATTEMPTS} times")
        self._observer.trial_finished(TrialResult(record=record, runs=latest.runs if latest else ()))

    def break_off(self) -> None:
        """The sweep ends before its time: tell of the trials under way, with the rungs that they have finished."""
        for trial_id, spec in self._running.items():
            latest = self._latest.pop(trial_id, None)
            record = latest.record if latest else blank_record(spec, TrialStatus.INTERRUPTED)
            record = record.with_(status=TrialStatus.INTERRUPTED)
            self._observer.trial_finished(TrialResult(record=record, runs=latest.runs if latest else ()))
        for latest in self._latest.values():
            self._observer.trial_finished(latest)
        self._running, self._latest = {}, {}
