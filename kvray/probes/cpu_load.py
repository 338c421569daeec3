"""How long a measurement had to do without a CPU that it wanted, and how many CPUs others kept busy meanwhile."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from kvray.probes import cgroups, cpu

SHORTEST_LOAD_S = 0.2
"""Twenty ticks of the kernel's clock; what others used in less is not known."""
WAKE_UP_NS = 50_000
"""What a thread that sleeps may take to be on a CPU again although one is free. Libraries whose threads sleep between
parallel loops wake them hundreds of times in a run; who waits for another program waits for milliseconds."""


def own_tasks() -> Sequence[Path]:
    """The folder in which Linux tells of this process's threads."""
    return (Path(f"/proc/{os.getpid()}/task"),)


def own_cpu_s() -> float:
    """Seconds of CPU time that this process alone has used so far."""
    times = os.times()
    return times.user + times.system


@dataclass(frozen=True, kw_only=True)
class Waited:
    """How long the most hindered thread of a measurement wanted a CPU and had none, as a share of the time that passed.

    The others mostly wait for that one: a layer is done when its last part is.

    Attributes:
        for_others: while other programs had the CPUs.
        for_quota: while a cgroup's CPU quota was used up.
    """

    for_others: float
    for_quota: float


class OwnThreads:
    """The waiting of a measurement's threads since this was made.

    Linux counts for each thread, to the nanosecond, how long it was ready to run and had no CPU, be it for other
    programs or for a quota that was used up. So a run of a millisecond is judged as truly as one of a minute.

    Args:
        quotas: folders of this process's control groups that have a CPU quota.
        tasks: tells the folders of threads (`/proc/PID/task`) of all processes of the measurement.
    """

    def __init__(self, quotas: Sequence[Path] = (), *, tasks: Callable[[], Sequence[Path]] = own_tasks) -> None:
        self._quotas = quotas
        self._tasks = tasks
        self._before = _waits(tasks())
        self._throttled_s = cgroups.throttled_s(quotas)
        self._started, self._ran_s = time.perf_counter(), time.process_time()

    def waited(self) -> Waited | None:
        """`None` where the system counts neither waiting nor throttling."""
        passed_s, ran_s = time.perf_counter() - self._started, time.process_time() - self._ran_s
        now, throttled_s = _waits(self._tasks()), cgroups.throttled_s(self._quotas)
        throttled = 0.0 if throttled_s is None or self._throttled_s is None else throttled_s - self._throttled_s
        if now is None or self._before is None:
            return None if throttled_s is None else Waited(for_others=0.0, for_quota=throttled / passed_s)
        waited_s = max((one.beyond_waking_s(self._before.get(name)) for name, one in now.items()), default=0.0)
        ran_s += sum(
            one.ran_s(self._before.get(name)) for name, one in now.items() if one.pid not in (None, os.getpid())
        )
        unused_s = cpu.visible_cpus() * passed_s - ran_s
        return waited_of(waited_s, unused_s=unused_s, throttled_s=throttled, passed_s=passed_s)


def waited_of(waited_s: float, *, unused_s: float, throttled_s: float, passed_s: float) -> Waited:
    """What `waited_s` seconds without a CPU, of `passed_s`, were for.

    Threads that are more than the CPUs wait for each other, and nobody else keeps them: that shows in `unused_s`, the
    CPU time that their processes might have had and did not use.
    """
    lost_s = min(waited_s, max(0.0, unused_s))
    for_quota_s = min(lost_s, throttled_s)
    return Waited(for_others=(lost_s - for_quota_s) / passed_s, for_quota=for_quota_s / passed_s)


@dataclass(frozen=True, kw_only=True)
class _Waits:
    """What the kernel has counted for one thread of process `pid`: nanoseconds on a CPU and ready without one, and how
    often it was given one."""

    pid: int | None
    ran_ns: int
    waited_ns: int
    turns: int

    def beyond_waking_s(self, before: _Waits | None) -> float:
        """Seconds since `before` (`None`: since the thread's start) without what each waking takes anyway."""
        waited_ns = self.waited_ns - (before.waited_ns if before else 0)
        turns = self.turns - (before.turns if before else 0)
        return max(0, waited_ns - turns * WAKE_UP_NS) / 1e9

    def ran_s(self, before: _Waits | None) -> float:
        """Seconds on a CPU since `before` (`None`: since the thread's start)."""
        return (self.ran_ns - (before.ran_ns if before else 0)) / 1e9


def _waits(tasks: Sequence[Path]) -> dict[str, _Waits] | None:
    """By thread id; `None` where the kernel does not count: there are no such files, or they are all zeros. Source:
    Documentation/scheduler/sched-stats.rst, /proc/<pid>/schedstat."""
    waits: dict[str, _Waits] = {}
    for file in (file for folder in tasks for file in folder.glob("*/schedstat")):
        with contextlib.suppress(OSError, ValueError):  # the thread has just ended, or the kernel does not count
            ran, waited, turns = map(int, file.read_text(encoding="ascii").split())
            process = file.parts[-4]
            pid = int(process) if process.isdecimal() else None
            waits[file.parent.name] = _Waits(pid=pid, ran_ns=ran, waited_ns=waited, turns=turns)
    return waits if any(one.turns for one in waits.values()) else None


class OtherLoad:
    """CPUs that all but this process kept busy: other programs, and what a hypervisor withheld.

    The kernel counts in ticks, so that a short stretch of time tells nothing: it is judged by the latest
    `SHORTEST_LOAD_S` before its end, as far back as this was asked.

    Args:
        own_cpu_s: CPU time so far of all that are not others; by default of this process alone.
    """

    def __init__(self, own_cpu_s: Callable[[], float] = own_cpu_s) -> None:
        self._own_cpu_s = own_cpu_s
        self._marks: deque[tuple[float, float]] = deque()
        self.mark()

    def mark(self) -> None:
        """A stretch of time begins now."""
        now = time.perf_counter()
        self._marks.append((now, _machine_busy_s() - self._own_cpu_s()))
        while len(self._marks) > 1 and now - self._marks[1][0] >= SHORTEST_LOAD_S:
            self._marks.popleft()

    def cpus(self) -> float | None:
        """Average since the last mark; `None` while nothing is known of the latest `SHORTEST_LOAD_S`."""
        now, busy_s = time.perf_counter(), _machine_busy_s() - self._own_cpu_s()
        for started, before in reversed(self._marks):
            if now - started >= SHORTEST_LOAD_S:
                return max(0.0, busy_s - before) / (now - started)
        return None


def _machine_busy_s() -> float:
    """Seconds of all CPUs together that were not idle; guest time is part of user time already. Source: proc(5)."""
    times = psutil.cpu_times()
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(getattr(times, name, 0.0) for name in names))
