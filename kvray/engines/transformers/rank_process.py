"""The process of a rank: a fork of rank 0 where that is safe, as measuring processes themselves are forks, and a fresh
interpreter elsewhere. A fork is ready at once; an interpreter imports torch for seconds, which would count as loading.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Protocol

from kvray.search_paths import child_environment, python_command

_POLL_S = 0.02
_THREADS = Path("/proc/self/task")


class RankProcess(Protocol):
    """What `subprocess.Popen` has."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; `None`: it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """The same once it has ended.

        Raises:
            subprocess.TimeoutExpired
        """

    def kill(self) -> None:
        """By SIGKILL."""


def start(theirs: Connection, *, threads: int | None, foreign: Sequence[Connection]) -> tuple[RankProcess, IO[bytes]]:
    """A process that runs `rank_program.serve` on the connection `theirs`, and what it prints.

    Args:
        threads: intra-op threads; `None`: the library's own choice.
        foreign: connections of rank 0 that it must not hold open.
    """
    if can_be_forked():
        return _forked(theirs, foreign)
    limits = {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    process = subprocess.Popen(
        python_command("-c", _program(), str(theirs.fileno()), str(os.getpid())),
        env={**child_environment(), **limits},
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    return process, process.stdout


def can_be_forked() -> bool:
    """Whether this process has one thread: neither CUDA nor OpenMP, whose threads a fork lacks, is at work in it."""
    try:
        return len(list(_THREADS.iterdir())) == 1
    except OSError:
        return False


class _Forked:
    """A child that was forked without a library's help."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None
        self._waiting = threading.Lock()

    def poll(self) -> int | None:
        with self._waiting:  # a process can be waited for once only
            if self._code is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self._code = os.waitstatus_to_exitcode(status) if pid else None
            return self._code

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired("rank", timeout or 0.0)
            time.sleep(_POLL_S)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _forked(theirs: Connection, foreign: Sequence[Connection]) -> tuple[RankProcess, IO[bytes]]:
    from kvray.engines.transformers.rank_program import run

    parent = os.getpid()
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _become(reader, writer, foreign, lambda: run(theirs, parent))
    os.close(writer)
    return _Forked(pid), os.fdopen(reader, "rb")


def _become(reader: int, writer: int, foreign: Sequence[Connection], run: Callable[[], None]) -> None:
    """In the fork, which must never return into its parent's code."""
    try:
        os.close(reader)
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        for one in foreign:
            one.close()
        run()
    finally:
        os._exit(1)


def _program() -> str:
    """It imports from where this process does."""
    return f"import sys; sys.path[:] = {sys.path!r}; from kvray.engines.transformers.rank_program import main; main()"
