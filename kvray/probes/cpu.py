"""The CPU side of a machine: name, cores, memory, priority, and a process's peak of resident memory."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

import psutil

_KIB_PER_MIB = 1024
_MIB = 1024 * 1024
_RESET_PEAK = "5"
"""Written to clear_refs, it resets VmHWM to the present resident set. Source: proc(5)."""


def cpu_name() -> str:
    """The processor's model name, or its architecture where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def available_cpus() -> int:
    """Logical CPUs that this process may use: its affinity, capped by a cgroup quota (rounded up)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota_cpus()
    return max(1, allowed if quota is None else min(allowed, quota))


def total_memory_mib() -> float:
    """Physical memory of the machine."""
    return float(psutil.virtual_memory().total) / _MIB


def set_normal_priority() -> int:
    """Give this process the priority of a user's own (niceness 0) where that is permitted.

    Returns:
        The niceness that it has now.
    """
    if os.getpriority(os.PRIO_PROCESS, 0) > 0:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)
    return os.getpriority(os.PRIO_PROCESS, 0)


class PeakRss:
    """Highest resident set of this process since `reset`.

    On Linux the kernel's own high-water mark is reset, so that the peak belongs to one measurement and not to the
    process's life. Where that is refused, it is the highest value seen by `reset` and `read_mib`: a lower bound.
    """

    def __init__(self) -> None:
        self._highest_seen_mib = 0.0
        self.is_exact = False

    def reset(self) -> None:
        """Start a new window."""
        self._highest_seen_mib = _resident_mib()
        try:
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
            self.is_exact = _high_water_mib() is not None
        except OSError:
            self.is_exact = False

    def read_mib(self) -> float:
        """The peak so far."""
        high_water = _high_water_mib() if self.is_exact else None
        if high_water is not None:
            return high_water
        self._highest_seen_mib = max(self._highest_seen_mib, _resident_mib())
        return self._highest_seen_mib


def _resident_mib() -> float:
    return float(psutil.Process().memory_info().rss) / _MIB


def _high_water_mib() -> float | None:
    """VmHWM of /proc/self/status."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / _KIB_PER_MIB
    return None


def _cgroup_quota_cpus() -> int | None:
    """CPUs that the cgroup (version 2) grants, rounded up; `None` without a quota."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            return -(-int(quota) // int(period))
    return None
