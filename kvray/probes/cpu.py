"""CPU and host memory as a measuring process sees them: affinity and cgroup limits included, priority, peak RSS.

Works on Linux in full; elsewhere psutil answers what it can.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

MIB = 2**20

_CGROUP_MOUNT = Path("/sys/fs/cgroup")
_RESET_PEAK = "5"  # proc_pid_clear_refs(5): "reset the peak resident set size to the current resident set size"
_PEAK_SLACK_MIB = 8.0  # the kernel counts RSS in batches per CPU: peak and current may differ by some pages at once


def cpu_name() -> str:
    """The processor's marketing name, or its architecture where the system does not tell."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE):
            return found.group(1).strip()
    return platform.processor() or platform.machine() or "unknown CPU"


def physical_cores() -> int:
    """Cores of this machine without hyper-threads; logical ones where the system does not tell them apart."""
    return int(psutil.cpu_count(logical=False) or psutil.cpu_count() or 1)


def machine_cpus() -> int:
    """CPUs of this machine, whoever may use them."""
    return int(psutil.cpu_count() or 1)


def available_cpus() -> int:
    """CPUs that this process may keep busy: its affinity, less what a cgroup quota takes away; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1
    quotas = [_cpu_quota(folder) for folder in _cgroup_folders("cpu")]
    return max(1, min([affinity, *(int(quota) for quota in quotas if quota is not None)]))


def openmp_threads() -> int | None:
    """The thread count that the user has set for OpenMP programs, if any."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else None


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
    """Memory of this machine, or the lower limit of a cgroup."""
    limits = [_memory_limit_mib(folder) for folder in _cgroup_folders("memory")]
    return min([float(psutil.virtual_memory().total) / MIB, *(limit for limit in limits if limit is not None)])


def available_memory_mib() -> float:
    """Memory that new processes can take without swapping, or what a cgroup's limit leaves, if that is less. Of what a
    cgroup uses, files that the kernel would drop again do not count."""
    left = (_cgroup_memory_left_mib(folder) for folder in _cgroup_folders("memory"))
    return min([float(psutil.virtual_memory().available) / MIB, *(mib for mib in left if mib is not None)])


def kernel_oom_kills() -> int | None:
    """Processes that the kernel has ended for want of memory: in this cgroup where it counts (in version 1 without
    those below), else on the whole machine; `None` where it does not tell."""
    return _oom_kills(_cgroup_folders("memory"), Path("/proc/vmstat"))


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
    """Highest resident set of this process within a window, not within its life.

    On Linux the kernel's own high-water mark is set back (`/proc/self/clear_refs`), so that no peak between two
    looks is missed. Elsewhere, or where a sandbox forbids it, it is the highest resident set seen at `reset` and
    `read_mib`.
    """

    def __init__(self) -> None:
        self._highest_seen_mib = 0.0
        self._is_exact = False

    @property
    def is_exact(self) -> bool:
        """Whether the current window's peak is the kernel's; `False` before the first `reset`."""
        return self._is_exact

    def reset(self) -> None:
        """Begin a window."""
        self._highest_seen_mib = _current_rss_mib()
        self._is_exact = _reset_high_water()

    def read_mib(self) -> float:
        """The peak since `reset`, in MiB. The window stays open."""
        self._highest_seen_mib = max(self._highest_seen_mib, _current_rss_mib())
        high_water = _high_water_mib() if self._is_exact else None
        return self._highest_seen_mib if high_water is None else max(high_water[0], self._highest_seen_mib)


def release_heap() -> None:
    """Give freed memory back to the system, so that what one step held is not in the peak of the next (glibc only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reset_high_water() -> bool:
    """Whether the kernel's mark was set back; some sandboxes take the order and do nothing."""
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    marks = _high_water_mib()
    return marks is not None and marks[0] <= marks[1] + _PEAK_SLACK_MIB


def _high_water_mib() -> tuple[float, float] | None:
    """The kernel's peak and current resident set, both read in one go."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    kib = {name: int(value) for name, value in re.findall(r"^(VmHWM|VmRSS):\s*(\d+) kB$", status, flags=re.MULTILINE)}
    return (kib["VmHWM"] / 1024, kib["VmRSS"] / 1024) if len(kib) == 2 else None


def _current_rss_mib() -> float:
    return float(psutil.Process().memory_info().rss) / MIB


def _cgroup_folders(controller: str, own: Path = Path("/proc/self/cgroup"), mount: Path = _CGROUP_MOUNT) -> list[Path]:
    """The folders that may limit this process: its cgroup and all above it, of version 2 and of `controller`'s own.

    A container often sees itself at the mount's root while `own` shows the host's path: folders that are not there
    limit nothing.
    """
    try:
        lines = own.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    folders: dict[Path, None] = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folders.update(dict.fromkeys(_with_parents(mount, path)))
        elif controller in controllers.split(","):
            folders.update(dict.fromkeys(_with_parents(mount / controller, path)))
    return list(folders)


def _with_parents(mount: Path, path: str) -> Iterator[Path]:
    folder = mount / path.strip("/")
    while folder != mount:
        yield folder
        folder = folder.parent
    yield mount


def _cpu_quota(folder: Path) -> float | None:
    """CPUs' worth of time per period; `None` for no limit."""
    v2 = _read_words(folder / "cpu.max")
    v1 = _read_words(folder / "cpu.cfs_quota_us") + _read_words(folder / "cpu.cfs_period_us")
    for words in (v2, v1):
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            return int(words[0]) / int(words[1])
    return None


def _memory_limit_mib(folder: Path) -> float | None:
    """`None` for no limit; version 1 says a number near 2**63 instead, which no machine's memory exceeds."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        words = _read_words(folder / name)
        if words and words[0].isdigit():
            return int(words[0]) / MIB
    return None


def _cgroup_memory_left_mib(folder: Path) -> float | None:
    """`None` where there is no limit, or no word of what is used."""
    limit = _memory_limit_mib(folder)
    used = _read_words(folder / "memory.current") or _read_words(folder / "memory.usage_in_bytes")
    if limit is None or not used:
        return None
    words = _read_words(folder / "memory.stat")
    files = dict(zip(words[::2], words[1::2], strict=False))
    droppable = int(files.get("inactive_file", files.get("total_inactive_file", "0")))
    return max(0.0, limit - (int(used[0]) - droppable) / MIB)


def _oom_kills(folders: list[Path], vmstat: Path) -> int | None:
    places = [folder / name for folder in folders for name in ("memory.events", "memory.oom_control")]
    for place in (*places, vmstat):
        words = _read_words(place)
        if "oom_kill" in words[:-1]:
            return int(words[words.index("oom_kill") + 1])
    return None


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []


SHORTEST_LOAD_S = 0.2
"""Twenty ticks of the kernel's clock."""


class OtherLoad:
    """CPU time taken by all but this process since this was made: other programs, and what a hypervisor withheld."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._before = _machine_busy_s() - _own_busy_s()

    def cpus(self) -> float | None:
        """Average number of CPUs that others used; `None` below `SHORTEST_LOAD_S`, where ticks tell nothing."""
        passed = time.perf_counter() - self._started
        if passed < SHORTEST_LOAD_S:
            return None
        return max(0.0, _machine_busy_s() - _own_busy_s() - self._before) / passed


def _machine_busy_s() -> float:
    """Seconds of all CPUs together that were not idle; guest time is part of user time already. Source: proc(5)."""
    times = psutil.cpu_times()
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(getattr(times, name, 0.0) for name in names))


def _own_busy_s() -> float:
    times = os.times()
    return times.user + times.system
