"""Which processes belong to a measurement, and what they use together.

An engine may compute in processes of its own, such as a server. Its CPU time is no other program's, its memory counts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from kvray.probes.cpu import PeakRss, mapped_libraries_mib

_PROC = Path("/proc")


def this_process() -> Sequence[int]:
    """The id of this process alone."""
    return (os.getpid(),)


class OwnProcesses:
    """This process, those that its engine names, and all that these have started."""

    def __init__(self) -> None:
        self._named: Callable[[], Sequence[int]] = this_process
        self._peaks: dict[int, PeakRss] = {}

    def follow(self, named: Callable[[], Sequence[int]]) -> None:
        """Count the processes that `named` tells from now on. It is asked each time: an engine may start one late."""
        self._named = named

    def pids(self) -> tuple[int, ...]:
        """All that are alive, this process first."""
        found = dict.fromkeys((os.getpid(), *self._named()))
        for pid in list(found):
            found.update(dict.fromkeys(descendants(pid)))
        return tuple(found)

    def cpu_s(self) -> float:
        """Seconds of CPU time that they have used so far, with those of children that have ended and were waited for.

        The kernel counts in ticks of 4 to 10 ms.
        """
        times = os.times()
        own_s = times.user + times.system + times.children_user + times.children_system
        return own_s + sum(_cpu_s(pid) for pid in self.pids() if pid != os.getpid())

    def task_folders(self) -> tuple[Path, ...]:
        """Where Linux tells of the threads of each."""
        return tuple(_PROC / str(pid) / "task" for pid in self.pids())

    def reset_peak(self) -> None:
        """Start a new window for `others_peak_mib`."""
        self._peaks = {pid: PeakRss(pid) for pid in self._other_named()}
        for peak in self._peaks.values():
            peak.reset()

    def others_peak_mib(self) -> float:
        """Highest resident sets since `reset_peak` of the processes that the engine names beside this one, added up.

        What two of them share, such as a mapped file, counts for each. What they have started but the engine does not
        name, such as a compiler, holds no part of the model and does not count.
        """
        for pid in self._other_named():
            self._peaks.setdefault(pid, PeakRss(pid))  # it was started within the window
        return sum(peak.read_mib() for peak in self._peaks.values())

    def libraries_mib(self) -> float | None:
        """What pages of shared libraries' files take of the resident sets of this process and those that the engine
        names, added up as their peaks are."""
        each = [mapped_libraries_mib(pid) for pid in (os.getpid(), *self._other_named())]
        return sum(filter(None, each)) or None

    def _other_named(self) -> list[int]:
        return [pid for pid in self._named() if pid != os.getpid()]


def descendants(pid: int) -> list[int]:
    """Ids of all living processes below `pid`."""
    found: list[int] = []
    todo = [pid]
    while todo:
        children = _children(todo.pop())
        found += children
        todo += children
    return found


def _children(pid: int) -> list[int]:
    """Linux keeps a list for each thread (proc_pid_tid_children(5)), unless it was built without; to look through all
    processes of the machine takes far longer."""
    tasks = _PROC / str(pid) / "task"
    if not (_PROC / "self" / "task" / str(os.getpid()) / "children").exists():
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
        return []
    children: list[int] = []
    for file in tasks.glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has just ended
            children += map(int, file.read_text(encoding="ascii").split())
    return children


def _cpu_s(pid: int) -> float:
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0
