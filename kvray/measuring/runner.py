"""`TrialRunner` starts one process per trial on this machine; `MeasuredTrial` follows it and knows its record."""

from __future__ import annotations

import datetime as dt
import logging
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from kvray.engines.base import EngineAdapter
from kvray.engines.interpreter import EnginePython
from kvray.errors import EngineError, sentence_of
from kvray.measuring.recording import measured_record
from kvray.probes.environment import Environment
from kvray.probes.gpu import wait_until_released
from kvray.record import Phase, TrialResult, TrialStatus
from kvray.search_paths import python_command
from kvray.trial.events import Event, RungFinished, TrialEnded, TrialFacts
from kvray.trial.process import Launcher, TrialProcess
from kvray.trial.spec import TrialSpec

_LONGEST_FOLDER = 107 - len("/pymp-12345678/listener-12345678")
"""Bytes that multiprocessing leaves for the temporary folder in a Unix socket's path (unix(7))."""
_logger = logging.getLogger("kvray.measuring")


class MeasuredTrial:
    """One trial from its start to its end. `close` must be called in the end, whatever happened.

    Args:
        hardware: digest of the machine, for the record; `None` where nothing has to be told apart.
        start: starts the process; may raise `EngineError`, and then that is how the trial has ended.
    """

    def __init__(
        self,
        spec: TrialSpec,
        *,
        environment: Environment,
        hardware: str | None,
        start: Callable[[], TrialProcess],
    ) -> None:
        self.spec = spec
        self.rung: int | None = None
        self._facts: TrialFacts | None = None
        self._environment = environment
        self._hardware = hardware
        self._started_at, self._started_s = dt.datetime.now(dt.UTC), time.monotonic()
        self._process: TrialProcess | None = None
        self._refusal: EngineError | None = None
        try:
            self._process = start()
        except EngineError as error:  # the engine's own Python is not on this machine
            self._refusal = error

    def advance(self) -> RungFinished | TrialEnded:
        """Let the process go on until a rung that others follow is finished, or until it has ended. Its memory is
        released then."""
        if self._process is None:
            reason = None if self._refusal is None else sentence_of(self._refusal)
            return TrialEnded(status=TrialStatus.ERROR, phase=Phase.START, message=reason, facts=None)
        event = self._process.advance()
        while isinstance(event, RungFinished):
            self.rung, self._facts = event.rung, event.facts
            if event.rung != self.spec.rungs[-1]:
                return event
            event = self._process.advance()
        self._facts = event.facts or self._facts
        self.close()
        return event

    def result(self, end: TrialEnded) -> TrialResult:
        """The record and the runs so far, for a trial that has ended, or would end, as `end` says."""
        process = self._process
        runs = () if process is None else tuple(process.runs)
        record = measured_record(
            self.spec,
            status=end.status,
            phase=end.phase,
            message=end.message,
            rung=self.rung,
            runs=runs,
            facts=self._facts,
            environment=self._environment,
            hardware=self._hardware,
            started_at=self._started_at,
            wall_s=time.monotonic() - self._started_s,
            log_tail=process.log_tail() if process is not None and end.status.is_failure else None,
        )
        return TrialResult(record=record, runs=runs)

    def close(self) -> None:
        """End the process and wait until its GPU memory is released. Idempotent."""
        if self._process is None:
            return
        self._process.close()
        if not wait_until_released(self._process.pids):
            _logger.warning("trial %s ended but its GPU memory is still held", self.spec.trial_id)


class TrialRunner:
    """Starts trials, one at a time, each in a fresh process. Each engine has a fork server, which stays for later ones.

    Use it from one thread that lives as long as the trials.

    Args:
        scratch: folder for what processes print and for their temporary files; by default, and where there is none, one
            is made. All of it goes with `close`, or with this process.
    """

    def __init__(self, scratch: Path | None = None) -> None:
        self._logs = tempfile.TemporaryDirectory(
            prefix="kvray-", dir=scratch if scratch is not None and scratch.is_dir() else None
        )
        _shorten_socket_folder()
        self._launchers: dict[str, Launcher] = {}

    def warm(self, adapter: EngineAdapter, python: EnginePython | None = None) -> None:
        """Start the engine's fork server now, so that its imports run while something else happens."""
        self._launcher_of(adapter, python).warm()

    def start(
        self,
        spec: TrialSpec,
        adapter: EngineAdapter,
        *,
        environment: Environment,
        python: EnginePython | None = None,
        hardware: str | None = None,
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> MeasuredTrial:
        """A trial whose process has been started, in kvray's own Python or in `python`."""
        spec = with_reference_python(spec)
        log = Path(self._logs.name) / f"{spec.trial_id}.log"
        return MeasuredTrial(
            spec,
            environment=environment,
            hardware=hardware,
            start=lambda: TrialProcess(self._launcher_of(adapter, python), spec, log, on_event=on_event),
        )

    def close(self) -> None:
        """Remove what processes have printed."""
        self._logs.cleanup()

    def _launcher_of(self, adapter: EngineAdapter, python: EnginePython | None) -> Launcher:
        launcher = self._launchers.get(adapter.name)
        if launcher is None:
            path = None if python is None else python.path
            launcher = self._launchers[adapter.name] = Launcher(adapter, python=path)
            launcher.reaper.remove_folder(Path(self._logs.name))
        return launcher


def with_reference_python(spec: TrialSpec) -> TrialSpec:
    """`spec` with this Python as the reference's, unless that has one of its own: the trial may run in another one."""
    if spec.reference is None or spec.reference.python is not None:
        return spec
    return replace(spec, reference=replace(spec.reference, python=python_command()[0]))


def _shorten_socket_folder() -> None:
    """The fork server listens in a folder of its own within the temporary one, whose path may be too long for that."""
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER:
        tempfile.tempdir = "/tmp"
