"""Forks the measurement processes of an engine that lives in another environment; runs in that environment's Python.

`multiprocessing` has such a server too, but tells it where its own Python looks for modules. This one is asked over a
socket (`trial.other_python`), imports what trials need once, adopts what they leave behind, and ends with its slot.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import sys
from multiprocessing.connection import Connection
from typing import Any

STATUS = struct.Struct("!q")
"""What the server writes into a process's pipe: first its id, in the end its exit code, negative for a signal."""


def main() -> None:
    """Serve the socket whose descriptor is named on the command line. A forked process comes out of `_serve` to
    measure, and ends as any program does."""
    from kvray.trial import server_preload  # noqa: F401  (importing it is what makes this a server)

    control = socket.socket(fileno=int(sys.argv[1]))
    asked = _serve(control)
    if asked is not None:
        from kvray.trial.child import child_main

        connection = Connection(asked)
        child_main(connection, *connection.recv())


def _serve(control: socket.socket) -> int | None:
    """Fork whenever the slot asks for it. Returns the descriptor of the connection in a process that was forked, and
    `None` in the server, when the slot is gone and all its processes have ended."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    statuses: dict[int, int] = {}
    listens = True
    while True:
        watched: list[Any] = [woken, control] if listens else [woken]
        ready, _, _ = select.select(watched, [], [])
        if woken in ready:
            os.read(woken, 4096)
        if control in ready:
            word, descriptors, _, _ = socket.recv_fds(control, 1, 2)
            listens = bool(word)
            if listens and len(descriptors) == 2 and not _fork(descriptors[1], statuses):
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for descriptor in (woken, wake, descriptors[1], *statuses.values()):
                    os.close(descriptor)
                control.close()
                return descriptors[0]
            for descriptor in descriptors[:1]:
                os.close(descriptor)
        if not _reap(statuses) and not listens:
            return None


def _fork(status: int, statuses: dict[int, int]) -> int:
    """The id of a new process, which is told over the pipe `status`; 0 in that process."""
    pid = os.fork()
    if pid:
        statuses[pid] = status
        os.write(status, STATUS.pack(pid))
    return pid


def _reap(statuses: dict[int, int]) -> bool:
    """Tell the exit codes of those that have ended, and forget them. Returns whether there are others, adopted ones
    included."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, code = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return True
            status = statuses.pop(pid, None)
            if status is not None:
                with contextlib.suppress(BrokenPipeError):  # the slot does not want to know any more
                    os.write(status, STATUS.pack(os.waitstatus_to_exitcode(code)))
                os.close(status)
    return False


if __name__ == "__main__":
    main()
