"""The trial actor: a Ray Tune `Trainable` that holds a GPU (or the CPU) and forks one process per trial.

One step of the Trainable is one rung. The actor is reused from trial to trial and never imports the engine's libraries.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune

from kvray.analysis.limits import missed_limits
from kvray.analysis.score import utility
from kvray.candidate import DeviceType
from kvray.engines.offline import OFFLINE_ENVIRONMENT
from kvray.errors import EngineError, sentence_of
from kvray.probes.cpu import quota_threads, total_memory_mib
from kvray.probes.environment import Environment, capture_environment, device_uuid, library_versions
from kvray.probes.gpu import wait_until_released
from kvray.record import Phase, TrialResult, TrialStatus
from kvray.search_paths import leave_out_working_folder, python_command
from kvray.store.fingerprint import hardware_digest
from kvray.sweep.recording import measured_record, rung_cells, rung_metrics
from kvray.sweep.remote_device import named_on_node
from kvray.sweep.trial_task import TrialTask
from kvray.trial.events import Event, RungFinished, TrialEnded, TrialFacts
from kvray.trial.position import PositionBoard, PositionNotes
from kvray.trial.process import Launcher, TrialProcess
from kvray.trial.spec import TrialSpec

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
_logger = logging.getLogger("kvray.sweep")
_GOING_ON = TrialEnded(status=TrialStatus.STOPPED, phase=None, message=None, facts=None)
"""How a trial has ended if no further step is asked for."""


class Slot(tune.Trainable):
    """One slot of the sweep. Ray calls `setup` once, `reset_config` for each further trial, `step` per rung."""

    def setup(self, config: dict[str, Any]) -> None:
        """Prepare the environment of all processes to come, and start the fork server."""
        task: TrialTask = config[TASK]
        leave_out_working_folder()  # a cluster may have been started with other paths than ours
        self._process: TrialProcess | None = None
        self._logs = tempfile.TemporaryDirectory(
            prefix="kvray-", dir=task.scratch if task.scratch and task.scratch.is_dir() else None
        )
        _set_process_environment(task)
        _shorten_socket_folder()
        self._launchers: dict[str, Launcher] = {}
        self._launcher_of(task).warm()
        self._task = task
        self._rung: int | None = None
        self._facts: TrialFacts | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial; the last one's process is ended and its memory released first."""
        self._end_process()
        self._task = new_config[TASK]
        return True

    def step(self) -> dict[str, Any]:
        """Run one rung."""
        try:
            process = self._process or self._begin()
        except EngineError as error:  # the engine's own Python is not on this machine
            end = TrialEnded(status=TrialStatus.ERROR, phase=Phase.START, message=sentence_of(error), facts=None)
            return self._ended(None, end)
        event = process.advance()
        while isinstance(event, RungFinished):
            self._rung, self._facts = event.rung, event.facts
            if event.rung != process.spec.rungs[-1]:
                return self._report(process, _GOING_ON, done=False)
            event = process.advance()
        self._facts = event.facts or self._facts
        self._end_process()
        return self._ended(process, event)

    def cleanup(self) -> None:
        """End what is left when the actor is let go."""
        self._end_process()
        self._logs.cleanup()

    def _ended(self, process: TrialProcess | None, end: TrialEnded) -> dict[str, Any]:
        """The report of a trial that has ended. The next step begins the one that follows it, if any does."""
        following = self._task.following_on(device_uuid(self._task.spec.device)) if self._task.then else None
        report = self._report(process, end, done=following is None)
        if following is not None:
            report[GOES_ON] = following.spec.trial_id
            self._task = following
        return report

    def _begin(self) -> TrialProcess:
        spec = _with_reference_python(self._task.spec)
        self._rung, self._facts = None, None
        self._environment = _environment(self._task)
        self._started_at, self._started_s = dt.datetime.now(dt.UTC), time.monotonic()
        self._process = TrialProcess(
            self._launcher_of(self._task),
            spec,
            Path(self._logs.name) / f"{spec.trial_id}.log",
            on_event=_position_notes(self._task),
        )
        return self._process

    def _launcher_of(self, task: TrialTask) -> Launcher:
        """The launcher of the engine of `task`. Each has a fork server of its own, which stays for later trials."""
        launcher = self._launchers.get(task.adapter.name)
        if launcher is None:
            python = None if task.python is None else task.python.path
            launcher = self._launchers[task.adapter.name] = Launcher(task.adapter, python=python)
            launcher.reaper.remove_folder(Path(self._logs.name))
        return launcher

    def _end_process(self) -> None:
        if self._process is not None:
            self._process.close()
            if not wait_until_released(self._process.pids):
                _logger.warning("trial %s ended but its GPU memory is still held", self._process.spec.trial_id)
            self._process = None

    def _report(self, process: TrialProcess | None, end: TrialEnded, *, done: bool) -> dict[str, Any]:
        spec = self._task.spec
        runs = () if process is None else tuple(process.runs)
        record = measured_record(
            spec,
            status=end.status,
            phase=end.phase,
            message=end.message,
            rung=self._rung,
            runs=runs,
            facts=self._facts,
            environment=self._environment,
            hardware=_hardware(self._task, self._environment),
            started_at=self._started_at,
            wall_s=time.monotonic() - self._started_s,
            log_tail=process.log_tail() if process is not None and end.status.is_failure else None,
        )
        report: dict[str, Any] = {RESULT: TrialResult(record=record, runs=runs), "done": done}
        metrics = rung_metrics(runs, self._rung)
        if metrics is not None and not end.status.is_failure:
            report[UTILITY] = utility(metrics, spec.profile)
            misses = missed_limits(record, rung_cells(runs, self._rung), spec.profile.limits)
            report[KEEPS_LIMITS] = not misses
            report[MAY_KEEP_LIMITS] = all(miss.is_doubtful() for miss in misses)
            report[FIDELITY] = REDUCTION_FACTOR ** (self._rung or 0)
        return report


def _with_reference_python(spec: TrialSpec) -> TrialSpec:
    """The trial may run in another environment than the reference, whose Python is this one unless it has its own."""
    if spec.reference is None or spec.reference.python is not None:
        return spec
    return replace(spec, reference=replace(spec.reference, python=python_command()[0]))


def _environment(task: TrialTask) -> Environment:
    gpus = task.spec.candidate.parallelism
    here = capture_environment(task.spec.device, libraries=task.adapter.libraries, gpus=gpus)
    if task.libraries is not None and task.spec.device is DeviceType.CUDA:
        here = named_on_node(here)
    return here if task.python is None else task.python.applied_to(here)


def _hardware(task: TrialTask, environment: Environment) -> str | None:
    """Digest of what this node is, on a cluster, whose nodes may differ."""
    if task.libraries is None:
        return None
    return hardware_digest(environment, memory_mib=total_memory_mib(), versions=library_versions(task.libraries))


def _position_notes(task: TrialTask) -> Callable[[Event], None]:
    """Where the driver runs on this machine, its view reads how far the trial is."""
    if task.scratch is None or not task.scratch.is_dir():
        return lambda _: None
    return PositionNotes(PositionBoard(task.scratch), task.spec.trial_id).note


_LONGEST_FOLDER = 107 - len("/pymp-12345678/listener-12345678")
"""Bytes that multiprocessing leaves for the temporary folder in a Unix socket's path (unix(7))."""


def _shorten_socket_folder() -> None:
    """The fork server listens in a folder of its own within the temporary one, whose path may be too long for that."""
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER:
        tempfile.tempdir = "/tmp"


def _set_process_environment(task: TrialTask) -> None:
    """Ray caps a worker's threads at its share of CPUs; a user's own process has no such cap, but perhaps a quota."""
    threads = task.threads or quota_threads()
    if threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)
    else:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    # NVML numbers GPUs by bus; CUDA does so only when told, and Ray hands out such numbers.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if task.spec.request.offline:
        os.environ.update(OFFLINE_ENVIRONMENT)
