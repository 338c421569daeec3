"""`kvray tune` as a process of its own that tests watch, harm, and search for what it leaves behind."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import psutil
from command_lines import command_line

from kvray.record import TrialResult
from kvray.store.parquet import ResultsStore
from kvray.workload import create_custom_profile

FAKE = ("--engine", "fake", "--device", "cpu", "--context", "16", "--output-len", "4", "--repeats", "1")
SMALL = create_custom_profile(
    "small",
    context_lengths=(16,),
    output_lengths=(4,),
    repeats=1,
    weight_ttft=0.4,
    weight_throughput=0.4,
    weight_memory=0.2,
)
"""The workload that `FAKE` asks for."""
_MARK = "KVRAY_TEST_SWEEP"
_RAY_FOLDER = Path("/tmp/ray")


class Driver:
    """One `kvray tune`. What it says on stderr is collected in `lines`, and passed on, so that pytest
    shows it of a test that reaches its limit. `before` stands before its command.

    Processes that it starts bear a mark in their environment; Ray's agents wipe theirs, so those that are below the
    driver when it is killed are known besides.
    """

    def __init__(self, *arguments: str | Path, before: Sequence[str] = (), **environment: str) -> None:
        self.lines: list[str] = []
        self._mark = uuid.uuid4().hex
        self._below: list[psutil.Process] = []
        self._older_sessions = set(_RAY_FOLDER.glob("session_*"))  # one may be of a process that had our number
        self._new: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", "kvray", "tune", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment, _MARK: self._mark},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, text: str, *, times: int = 1) -> str:
        """The line of stderr in which `text` comes for the `times`-th time from now on."""
        while (line := self._new.get()) is not None:
            times -= text in line
            if not times:
                return line
        raise AssertionError(f"{text!r} was not said; said was: {self.lines}")

    def wait(self, timeout_s: float | None = None) -> int:
        """Its exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join(240)
        return code

    def kill(self) -> None:
        """SIGKILL, for the driver alone."""
        self._below = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Whatever the test has come to: nothing of the sweep goes on."""
        if self.process.poll() is None:
            self.kill()
        for process in self.marked():
            process.kill()

    def marked(self) -> list[psutil.Process]:
        """All living processes that this driver started, directly or not, and itself."""
        marked = {one.pid: one for one in psutil.process_iter() if one.pid != os.getpid() and self._is_marked(one)}
        below = {one.pid: one for one in self._below if one.is_running() and one.status() != psutil.STATUS_ZOMBIE}
        return list({**marked, **below}.values())

    def orphans(self, after_s: float) -> list[str]:
        """What is alive `after_s` seconds from now at the latest."""
        deadline = time.monotonic() + after_s
        while (left := self.marked()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return [f"{one.pid} {' '.join(command_line(one))[:120]}" for one in left if one.is_running()]

    def ray_sessions(self) -> list[Path]:
        """Folders of its private Ray."""
        return [one for one in _RAY_FOLDER.glob(f"session_*_{self.process.pid}") if one not in self._older_sessions]

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return bool(process.environ().get(_MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE)
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            return False

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            sys.stderr.write(line)
            self._new.put(self.lines[-1])
        self._new.put(None)


def recorded(folder: Path, run_id: str | None = None) -> dict[str, TrialResult]:
    """What lies in a results folder, by trial id."""
    store = ResultsStore(folder)
    return {one.record.trial_id: one for one in store.read(run_id or store.latest_run_id())}


def signal_group(driver: Driver, number: signal.Signals) -> None:
    """As a terminal does: to the driver's whole process group."""
    os.killpg(driver.process.pid, number)
