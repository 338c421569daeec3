"""CPU and host memory as a measuring process sees them: affinity and cgroup limits included, priority, peak RSS.

Works on Linux in full; elsewhere psutil answers what it can. How busy the CPUs are is asked of `probes.cpu_load`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import re
from pathlib import Path

import psutil

from kvray.probes import cgroups
from kvray.probes.cgroups import MIB

_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's job supervisor sets it for the program that it starts
_RESET_PEAK = "5"  # proc_pid_clear_refs(5): "reset the peak resident set size to the current resident set size"
_LIBRARY = re.compile(r"\.so(\.[\w.]+)*$")
_PEAK_SLACK_MIB = 8.0  # the kernel counts RSS in batches per CPU: peak and current may differ by some pages at once


def cpu_name() -> str:
    """The processor's marketing name, or its architecture where the system does not tell."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE):
            return found.group(1).strip()
    return platform.processor() or platform.machine() or "unknown CPU"


def cpu_flags() -> frozenset[str]:
    """Instructions that the processor has, by the names of /proc/cpuinfo; none where the system has no such file."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, flags=re.MULTILINE):
            return frozenset(found[1].split())
    return frozenset()


def machine_cpus() -> int:
    """CPUs of this machine, whoever may use them."""
    return int(psutil.cpu_count() or 1)


def visible_cpus() -> int:
    """CPUs that this process may run on: its affinity, which `taskset` and a cpuset narrow."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine_cpus()


def available_cpus() -> int:
    """CPUs that this process may keep busy: those it may run on, less what a cgroup quota takes away; at least 1."""
    return quota_threads() or visible_cpus()


def quota_threads() -> int | None:
    """Threads that a cgroup's CPU quota leaves room for: one per whole CPU, at least 1. `None` where no quota is below
    the visible CPUs."""
    quota = cgroups.cpu_quota()
    return None if quota is None or quota >= visible_cpus() else max(1, int(quota))


def openmp_threads() -> int | None:
    """The thread count that the user, or a slot, has set for OpenMP programs, if any."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else None


def wished_threads() -> int | None:
    """The thread count that the user has set for OpenMP programs, if any. In a program that was submitted to Ray as a
    job the variable is Ray's, which sets it to 1, unless the job's runtime environment names it."""
    return None if threads_are_rays() else openmp_threads()


def trial_threads(wished: int | None, slots: int) -> int | None:
    """Threads of a trial on a CPU of this machine, as `sweep.slot_plan.plan_slots` divides it among `slots`; `None` for
    the library's own choice. What the user has `wished` for counts first."""
    return wished or (quota_threads() if slots == 1 else max(1, available_cpus() // slots))


def threads_are_rays() -> bool:
    """Whether Ray, and not the user, has set the thread count for OpenMP programs in this process."""
    job = os.environ.get(_RAY_JOB)
    if job is None:
        return False
    try:
        return "OMP_NUM_THREADS" not in json.loads(job)["runtime_env"]["env_vars"]
    except (ValueError, KeyError, TypeError):
        return True


def wanted_cpus() -> int:
    """CPUs that a measurement with this process's settings keeps busy: its threads, as far as there are CPUs."""
    return min(available_cpus(), openmp_threads() or available_cpus())


def clock_mhz() -> float | None:
    """Clock of the fastest core now, which is a busy one; `None` where the system does not tell.

    Virtual machines mostly tell a constant.
    """
    if not hasattr(psutil, "cpu_freq"):
        return None
    with contextlib.suppress(OSError, NotImplementedError):
        return max((float(core.current) for core in psutil.cpu_freq(percpu=True) if core.current), default=None)
    return None


def total_memory_mib() -> float:
    """Memory of this machine, or the lowest limit of a cgroup."""
    machine, limit = float(psutil.virtual_memory().total) / MIB, cgroups.memory_limit_mib()
    return machine if limit is None else min(machine, limit)


def available_memory_mib() -> float:
    """Memory that new processes can take without swapping, or what a cgroup's limit leaves, if that is less."""
    machine, left = float(psutil.virtual_memory().available) / MIB, cgroups.memory_left_mib()
    return machine if left is None else min(machine, left)


def set_normal_priority() -> int:
    """Undo a raised niceness (Ray's workers have 15), so that a measurement competes as a user's process would.

    Lowering it again takes a privilege; without it the niceness stays.

    Returns:
        The niceness that holds now; 0 where the system knows none.
    """
    if not hasattr(os, "getpriority"):
        return 0
    if os.getpriority(os.PRIO_PROCESS, 0) > 0:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)
    return os.getpriority(os.PRIO_PROCESS, 0)


class PeakRss:
    """Highest resident set of one process within a window, not within its life.

    On Linux the kernel's own high-water mark is set back (`/proc/PID/clear_refs`), so that no peak between two
    looks is missed. Elsewhere, or where a sandbox forbids it, it is the highest resident set seen at `reset` and
    `read_mib`.

    Args:
        pid: of the process; by default this one. One that has ended keeps the highest that was seen.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._pid = os.getpid() if pid is None else pid
        self._highest_seen_mib = 0.0
        self._is_exact = False

    @property
    def is_exact(self) -> bool:
        """Whether the current window's peak is the kernel's; `False` before the first `reset`."""
        return self._is_exact

    def reset(self) -> None:
        """Begin a window."""
        self._highest_seen_mib = _current_rss_mib(self._pid)
        self._is_exact = _reset_high_water(self._pid)

    def read_mib(self) -> float:
        """The peak since `reset`, in MiB. The window stays open."""
        self._highest_seen_mib = max(self._highest_seen_mib, _current_rss_mib(self._pid))
        high_water = _high_water_mib(self._pid) if self._is_exact else None
        return self._highest_seen_mib if high_water is None else max(high_water[0], self._highest_seen_mib)


def mapped_libraries_mib(pid: int | None = None) -> float | None:
    """Memory of a process that pages of shared libraries' files take, in MiB; `None` where the system does not tell.

    They are part of its resident set. How many there are depends on the sizes in which the system holds the files in
    its cache, so the same code takes some ten MiB more with one copy of a library than with another.
    """
    with contextlib.suppress(psutil.Error, OSError, AttributeError):  # not every system tells of mappings
        kept = [one for one in psutil.Process(pid).memory_maps(grouped=True) if _LIBRARY.search(one.path)]
        return float(sum(one.rss - one.anonymous for one in kept)) / MIB  # what was written to is in no file any more
    return None


def release_heap() -> None:
    """Give freed memory back to the system, so that what one step held is not in the peak of the next (glibc only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reset_high_water(pid: int) -> bool:
    """Whether the kernel's mark was set back; some sandboxes take the order and do nothing."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    marks = _high_water_mib(pid)
    return marks is not None and marks[0] <= marks[1] + _PEAK_SLACK_MIB


def _high_water_mib(pid: int) -> tuple[float, float] | None:
    """The kernel's peak and current resident set, both read in one go."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    kib = {name: int(value) for name, value in re.findall(r"^(VmHWM|VmRSS):\s*(\d+) kB$", status, flags=re.MULTILINE)}
    return (kib["VmHWM"] / 1024, kib["VmRSS"] / 1024) if len(kib) == 2 else None


def _current_rss_mib(pid: int) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        return float(psutil.Process(pid).memory_info().rss) / MIB
    return 0.0
