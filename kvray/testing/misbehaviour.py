"""What the fake engine does wrong on command, each as really as a process can. For tests only."""

from __future__ import annotations

import ctypes
import enum
import multiprocessing
import os
import resource
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import NoReturn

import numpy as np

from kvray.engines.base import OutOfMemoryError, SubstitutedError, UnsupportedError
from kvray.engines.failures import give_up

LONG_S = 3600.0
SLOW_S = 2.0
MOST_MEMORY_MIB = 4096
"""What `memory` takes at most, should nobody end it."""
_MIB = 2**20
_kept: list[object] = []
"""What must live as long as the process."""


class Misbehaviour(enum.StrEnum):
    """What a candidate can be told to do."""

    RAISE = "raise"
    OOM = "oom"
    UNSUPPORTED = "unsupported"
    SUBSTITUTED = "substituted"
    EXIT = "exit"
    SEGV = "segv"
    KILL = "kill"
    HANG = "hang"
    GIVE_UP = "give_up"
    """Hangs, and another thread gives up."""
    GIL = "gil"
    """Hangs in C code and holds the interpreter's lock."""
    STOPPED = "stopped"
    """Stops itself (SIGSTOP): it does nothing any more, not even end on SIGTERM."""
    STUBBORN = "stubborn"
    """From now on ignores SIGTERM, and hangs."""
    DEAF = "deaf"
    """From now on ignores SIGTERM, and goes on."""
    MEMORY = "memory"
    """Takes more and more memory, and touches it."""
    RLIMIT = "rlimit"
    """Asks for more memory than its own limit allows."""
    SLOW = "slow"
    """Takes `SLOW_S` longer, so that something can happen to it meanwhile."""
    CHILDREN = "children"
    """Leaves a process behind in its own process group."""
    DAEMON = "daemon"
    """Leaves a process behind that has left its group and its parent."""
    THREAD = "thread"
    """Leaves a thread that keeps the process alive."""
    FILES = "files"
    """Leaves temporary files, some of them in a folder that may not be entered."""
    SHM = "shm"
    """Leaves shared memory and a semaphore."""
    FLOOD = "flood"
    """Prints without end."""
    GARBAGE = "garbage"
    """Writes into the pipe of its events, then dies."""
    LEAK = "leak"
    """Prints what its environment holds of credentials, and raises with a token in its message."""
    SERVER = "server"
    """Lives in a server process, as some engines do, which is no fault."""
    STAGGERED = "staggered"
    """Its sequences get their tokens one after the other, as in continuous batching, which is no fault."""
    LOSSY = "lossy"
    """Tells log-probabilities far from those of the other candidates."""
    TOPK = "topk"
    """Tells the log-probabilities of the most probable tokens only."""

    def act(self) -> None:
        """Do it."""
        if self in _ACTS:
            _ACTS[self]()


def _raise(error: Exception) -> Callable[[], NoReturn]:
    def act() -> NoReturn:
        raise error

    return act


def _give_up() -> None:
    threading.Thread(target=give_up, args=("rank 1 was killed by SIGSEGV:\n\ttold to die",)).start()
    time.sleep(LONG_S)


def _exit() -> NoReturn:
    sys.stderr.write("last words\n")
    sys.stderr.flush()
    os._exit(7)


def _ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _be_stubborn() -> None:
    _ignore_sigterm()
    while True:
        time.sleep(LONG_S)


def _take_memory() -> None:
    step_mib = 32
    for _ in range(MOST_MEMORY_MIB // step_mib):
        _kept.append(np.ones(step_mib * _MIB, dtype=np.uint8))
    time.sleep(LONG_S)


def _exceed_own_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    now_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (now_pages * resource.getpagesize() + 256 * _MIB, hard))
    np.ones(2048 * _MIB, dtype=np.uint8)


def _leave_child() -> None:
    if os.fork() == 0:
        time.sleep(LONG_S)
        os._exit(0)


def _leave_daemon() -> None:
    reader, writer = os.pipe()
    first = os.fork()
    if first == 0:
        os.setsid()
        if os.fork() == 0:
            _ignore_sigterm()
            Path(tempfile.gettempdir(), "daemon.pid").write_text(str(os.getpid()), encoding="ascii")
            os.close(writer)
            time.sleep(LONG_S)
        os._exit(0)
    os.close(writer)
    os.read(reader, 1)  # ends when the daemon is ready
    os.waitpid(first, 0)


def _leave_files() -> None:
    folder = Path(tempfile.mkdtemp())
    (folder / "closed").mkdir()
    for name in ("file", "closed/file"):
        (folder / name).write_bytes(b"x" * _MIB)
    (folder / "closed").chmod(0)


def _leave_shared_memory() -> None:
    _kept.append(SharedMemory(create=True, size=_MIB))
    _kept.append(multiprocessing.get_context("spawn").Lock())  # a semaphore with a name
    time.sleep(1.0)  # long enough to be seen with it


def _flood() -> NoReturn:
    while True:
        os.write(2, b"x" * 1023 + b"\n")


def _leak() -> NoReturn:
    kinds = ("TOKEN", "SECRET", "PASSWORD", "PROXY", "ENDPOINT")
    found = {name: value for name, value in os.environ.items() if any(kind in name for kind in kinds)}
    sys.stderr.write(f"{found}\n")
    raise RuntimeError(f"refused with token {os.environ.get('HF_TOKEN')}")


def _write_garbage() -> NoReturn:
    for descriptor in range(3, 64):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.write(descriptor, b"\0\0\1\0 is not an event")
    os._exit(0)


_ACTS: dict[Misbehaviour, Callable[[], object]] = {
    Misbehaviour.RAISE: _raise(RuntimeError("told to raise")),
    Misbehaviour.OOM: _raise(OutOfMemoryError("told to run out of memory")),
    Misbehaviour.UNSUPPORTED: _raise(UnsupportedError("told to be unsupported")),
    Misbehaviour.SUBSTITUTED: _raise(SubstitutedError("told to run something else")),
    Misbehaviour.EXIT: _exit,
    Misbehaviour.SEGV: lambda: ctypes.string_at(0),
    Misbehaviour.KILL: lambda: os.kill(os.getpid(), signal.SIGKILL),
    Misbehaviour.HANG: lambda: time.sleep(LONG_S),
    Misbehaviour.GIVE_UP: _give_up,
    Misbehaviour.GIL: lambda: ctypes.PyDLL(None).pause(),
    Misbehaviour.STOPPED: lambda: os.kill(os.getpid(), signal.SIGSTOP),
    Misbehaviour.STUBBORN: _be_stubborn,
    Misbehaviour.DEAF: _ignore_sigterm,
    Misbehaviour.MEMORY: _take_memory,
    Misbehaviour.RLIMIT: _exceed_own_limit,
    Misbehaviour.SLOW: lambda: time.sleep(SLOW_S),
    Misbehaviour.CHILDREN: _leave_child,
    Misbehaviour.DAEMON: _leave_daemon,
    Misbehaviour.THREAD: lambda: threading.Thread(target=time.sleep, args=(LONG_S,)).start(),
    Misbehaviour.FILES: _leave_files,
    Misbehaviour.SHM: _leave_shared_memory,
    Misbehaviour.FLOOD: _flood,
    Misbehaviour.GARBAGE: _write_garbage,
    Misbehaviour.LEAK: _leak,
}
"""`LOSSY`, `TOPK`, `SERVER` and `STAGGERED` are nothing to do at a moment."""
