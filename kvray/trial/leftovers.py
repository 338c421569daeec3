"""Processes, temporary files and locks that a trial leaves behind, and their end."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from kvray.trial.trial_reaper import MARK, remove_tree

_ROUNDS = 5
"""A process may fork between the look and the kill."""
_KILL_S = 3.0
_POLL_S = 0.02
_logger = logging.getLogger("kvray.trial")


class ProcessTree:
    """All that one launcher has started, also what has left its trial's process group (setsid, double fork).

    What is forked from a fork server is adopted by it when its parent dies (`orphans.adopt_orphans`). Where it has died
    or there is none, the mark tells that all have in their environment. One trial runs at a time: whatever is there
    beside those that run is an ended one's.

    Attributes:
        mark: what `trial_reaper` knows them by if this process dies.
    """

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        self._server: psutil.Process | None = None
        self._running: set[int] = set()

    @contextlib.contextmanager
    def marked(self) -> Iterator[None]:
        """What is spawned meanwhile belongs to this tree."""
        os.environ[MARK] = self.mark
        try:
            yield
        finally:
            del os.environ[MARK]

    def add(self, pid: int) -> None:
        """Take note of a trial's process that has just started."""
        self._running.add(pid)
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(pid).parent()
            if parent is not None and parent.pid != os.getpid() and parent.ppid() == os.getpid():
                self._server = parent

    def remove(self, pid: int) -> None:
        """End everything that the trial of process `pid`, which has ended, left behind."""
        self._running.discard(pid)
        for _ in range(_ROUNDS):
            left = self._left()
            if not left:
                return
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=_KILL_S)
        _logger.warning("processes of an ended trial are still there: %s", ", ".join(str(one.pid) for one in left))

    def members(self, pid: int) -> Sequence[int]:
        """The running trial's process `pid` with all that it has started and that is alive."""
        return tuple(dict.fromkeys((*group(pid), *(one.pid for one in self._left()))))

    def has_lost_its_server(self, *, within_s: float = 0.0) -> bool:
        """Whether the fork server of the trial that was added last is dead. One that is killed closes its pipes before
        that can be seen."""
        if self._server is None:
            return False
        deadline = time.monotonic() + within_s
        while _is_alive(self._server):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _left(self) -> list[psutil.Process]:
        """What is alive below no running trial's process: an ended one's, or what has got away from a running one."""
        return self._marked() if self._server is None or self.has_lost_its_server() else self._adopted()

    def _adopted(self) -> list[psutil.Process]:
        left: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            for child in self._server.children() if self._server is not None else ():
                if child.pid not in self._running:
                    left += [child, *_children(child)]
        return [process for process in left if _is_alive(process)]

    def _marked(self) -> list[psutil.Process]:
        running = {pid for top in self._running for pid in group(top)}
        left: list[psutil.Process] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid not in running and process.environ().get(MARK) == self.mark and _is_alive(process):
                    left.append(process)
        return left


def group(leader: int) -> Sequence[int]:
    """The process `leader` and all its descendants that are alive."""
    with contextlib.suppress(psutil.Error):
        top = psutil.Process(leader)
        return (leader, *(child.pid for child in _children(top)))
    return (leader,)


def remove_folder(folder: Path) -> None:
    """Delete `folder` with all in it; what resists is told."""
    remove_tree(folder)
    if folder.exists():
        _logger.warning("temporary files of a trial cannot be removed: %s", folder)


def remove_stale_locks(locks: Sequence[Path]) -> None:
    """Delete those of the lock files `locks` whose maker was killed: each later trial would wait for them in vain.

    `torch.utils.cpp_extension` makes them (`FileBaton`) and keeps them open while it builds, so a lock that no living
    process has open is nobody's. Only those of our user, whose processes we see.
    """
    own = [lock for lock in locks if _is_own_file(lock)]
    if not own or not Path("/proc/self/fd").is_dir():
        return
    opened = _open_files()
    for lock in own:
        if os.path.realpath(lock) not in opened:
            with contextlib.suppress(OSError):
                lock.unlink()
                _logger.warning("removed the lock %s, which a killed build had left behind", lock)


def _is_own_file(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_uid == os.getuid()
    return False


def _open_files() -> set[str]:
    opened: set[str] = set()
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            for number in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    opened.add(str(number.readlink()))
    return opened


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return list(process.children(recursive=True))
    return []


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
