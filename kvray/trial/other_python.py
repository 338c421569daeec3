"""Starts measurement processes in the Python of another environment, by a fork server that runs there."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import weakref
from multiprocessing.connection import Connection
from typing import Any

from kvray.errors import EngineError
from kvray.search_paths import child_environment, python_command
from kvray.trial.other_python_server import STATUS

UNKNOWN_EXIT_CODE = 255
"""Exit code of a process whose fork server died before it could tell, as `multiprocessing.popen_forkserver` has it."""


class ForkedElsewhere:
    """A process that a server in another Python has forked, as far as `TrialProcess` wants to know of it.

    Attributes:
        sentinel: descriptor that is ready for reading once the process has ended.
    """

    def __init__(self, status: int) -> None:
        self.sentinel = status
        weakref.finalize(self, os.close, status)
        self.exitcode: int | None = None
        self.pid = self._read()
        if self.pid is None:
            raise EOFError("the fork server died before it had forked")

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        if self.exitcode is None and select.select([self.sentinel], [], [], 0)[0]:
            code = self._read()
            self.exitcode = UNKNOWN_EXIT_CODE if code is None else code
        return self.exitcode is None

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        if self.is_alive() and self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _read(self) -> int | None:
        data = os.read(self.sentinel, STATUS.size)
        return int(STATUS.unpack(data)[0]) if len(data) == STATUS.size else None


class OtherPython:
    """Forks processes in the Python at `path`.

    Args:
        keeps_server: whether one server, which has imported what trials need, forks all of them; else each process has
            a fresh one, as engines demand that must not be forked.
    """

    def __init__(self, path: str, *, keeps_server: bool) -> None:
        self._path = path
        self._keeps_server = keeps_server
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ending: list[subprocess.Popen[bytes]] = []

    def warm(self) -> None:
        """Start the server, where one is kept, with this process's environment. `start` tells what hinders that."""
        if self._keeps_server:
            with contextlib.suppress(EngineError):
                self._running_server()

    def start(self, *arguments: Any) -> tuple[ForkedElsewhere, Connection]:
        """A process that runs `trial.child.child_main` with `arguments`, and this side of its pipe.

        Raises:
            EngineError: there is no such Python on this machine, or its server has died without a word.
        """
        control = self._running_server()
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        status, their_status = os.pipe()
        with contextlib.suppress(OSError):  # its end shows when the process's id is read
            socket.send_fds(control, [b"f"], [theirs.fileno(), their_status])
        theirs.close()
        os.close(their_status)
        try:
            process = ForkedElsewhere(status)
        except EOFError as error:
            ours.close()
            self._let_go()
            raise EngineError(f"{self._path!r} could not start a measurement process: {error}.") from error
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            ours.send(arguments)
        if not self._keeps_server:
            self._let_go()
        return process, ours

    def _running_server(self) -> socket.socket:
        self._ending = [one for one in self._ending if one.poll() is None]
        if self._server is not None and self._server.poll() is not None:
            self._let_go()
        if self._control is None:
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    self._server = self._started_server(theirs.fileno())
                except OSError as error:
                    ours.close()
                    where = f"{self._path!r} cannot be started on {socket.gethostname()}"
                    raise EngineError(f"{where}: {error.strerror}.") from error
            self._control = ours
        return self._control

    def _started_server(self, control: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            python_command("-m", "kvray.trial.other_python_server", str(control), python=self._path),
            env=child_environment(python=self._path),
            stdin=subprocess.DEVNULL,
            pass_fds=[control],
        )

    def _let_go(self) -> None:
        """The server ends by itself with the last of its processes."""
        if self._control is not None:
            self._control.close()
        if self._server is not None:
            self._ending.append(self._server)
        self._server = self._control = None
