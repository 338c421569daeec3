"""The trial actor: a Ray Tune `Trainable` that holds a GPU (or the CPU) and forks one process per trial.

One step of the Trainable is one rung. The actor is reused from trial to trial and never imports the engine's libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune

from kvray.analysis.limits import missed_limits
from kvray.analysis.score import utility
from kvray.candidate import DeviceType
from kvray.measuring.recording import rung_cells, rung_metrics
from kvray.measuring.runner import MeasuredTrial, TrialRunner
from kvray.measuring.surroundings import hardware_here, set_process_environment, trial_environment
from kvray.probes.cpu import set_normal_priority
from kvray.probes.environment import Environment, device_uuid
from kvray.record import TrialStatus
from kvray.search_paths import leave_out_working_folder
from kvray.sweep.remote_device import named_on_node
from kvray.sweep.trial_task import TrialTask
from kvray.trial.events import Event, RungFinished, TrialEnded
from kvray.trial.position import PositionBoard, PositionNotes

TASK = "task"
"""Key of a trial's Tune config."""
RESULT = "kvray_result"
"""Key of a step's result under which the `TrialResult` so far travels to the driver."""
UTILITY = "utility"
"""Key of what the scheduler compares; absent when the trial failed."""
KEEPS_LIMITS = "keeps_limits"
"""Key of whether the profile's limits hold in the rung's cells; there whenever `UTILITY` is."""
MAY_KEEP_LIMITS = "may_keep_limits"
"""Key of whether they may hold: those that do not are missed by no more than noise, or on disturbed runs alone."""
FIDELITY = "fidelity"
"""Key of the scheduler's time: 1, 3, 9 for rungs 0, 1, 2."""
GOES_ON = "goes_on"
"""Key that is there when a trial has ended and the slot goes on with another one of its task: the id of that one."""
REDUCTION_FACTOR = 3
_GOING_ON = TrialEnded(status=TrialStatus.STOPPED, phase=None, message=None, facts=None)
"""How a trial has ended if no further step is asked for."""


class Slot(tune.Trainable):
    """One slot of the sweep. Ray calls `setup` once, `reset_config` for each further trial, `step` per rung."""

    def setup(self, config: dict[str, Any]) -> None:
        """Prepare the environment of all processes to come, and start the fork server."""
        task: TrialTask = config[TASK]
        set_normal_priority()  # Ray starts it at niceness 15, which all below it would inherit
        leave_out_working_folder()  # a cluster may have been started with other paths than ours
        self._trial: MeasuredTrial | None = None
        set_process_environment(threads=task.threads, offline=task.spec.request.offline)
        self._runner = TrialRunner(task.scratch)
        self._runner.warm(task.adapter, task.python)
        self._task = task

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial; the last one's process is ended and its memory released first."""
        self._end_trial()
        self._task = new_config[TASK]
        return True

    def step(self) -> dict[str, Any]:
        """Run one rung."""
        trial = self._trial = self._trial or self._begin()
        event = trial.advance()
        if isinstance(event, RungFinished):
            return _report(trial, _GOING_ON, done=False)
        self._trial = None
        return self._ended(trial, event)

    def cleanup(self) -> None:
        """End what is left when the actor is let go."""
        self._end_trial()
        self._runner.close()

    def _ended(self, trial: MeasuredTrial, end: TrialEnded) -> dict[str, Any]:
        """The report of a trial that has ended. The next step begins the one that follows it, if any does."""
        following = self._task.following_on(device_uuid(self._task.spec.device)) if self._task.then else None
        report = _report(trial, end, done=following is None)
        if following is not None:
            report[GOES_ON] = following.spec.trial_id
            self._task = following
        return report

    def _begin(self) -> MeasuredTrial:
        task, environment = self._task, _environment(self._task)
        return self._runner.start(
            task.spec,
            task.adapter,
            environment=environment,
            python=task.python,
            hardware=_hardware(task, environment),
            on_event=_position_notes(task),
        )

    def _end_trial(self) -> None:
        if self._trial is not None:
            self._trial.close()
            self._trial = None


def _report(trial: MeasuredTrial, end: TrialEnded, *, done: bool) -> dict[str, Any]:
    result, profile = trial.result(end), trial.spec.profile
    report: dict[str, Any] = {RESULT: result, "done": done}
    metrics = rung_metrics(result.runs, trial.rung)
    if metrics is not None and not end.status.is_failure:
        report[UTILITY] = utility(metrics, profile)
        misses = missed_limits(result.record, rung_cells(result.runs, trial.rung), profile.limits)
        report[KEEPS_LIMITS] = not misses
        report[MAY_KEEP_LIMITS] = all(miss.is_doubtful() for miss in misses)
        report[FIDELITY] = REDUCTION_FACTOR ** (trial.rung or 0)
    return report


def _environment(task: TrialTask) -> Environment:
    here = trial_environment(task.spec, task.adapter, task.python)
    on_gpu_of_a_node = task.libraries is not None and task.spec.device is DeviceType.CUDA
    return named_on_node(here) if on_gpu_of_a_node else here


def _hardware(task: TrialTask, environment: Environment) -> str | None:
    """Digest of what this node is, on a cluster, whose nodes may differ."""
    return None if task.libraries is None else hardware_here(environment, task.libraries)


def _position_notes(task: TrialTask) -> Callable[[Event], None]:
    """Where the driver runs on this machine, its view reads how far the trial is."""
    if task.scratch is None or not task.scratch.is_dir():
        return lambda _: None
    return PositionNotes(PositionBoard(task.scratch), task.spec.trial_id).note
