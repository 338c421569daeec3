"""Ends a trial that is about to take the machine's last memory, and tells when the kernel did so before us.

Ray's own monitor is off: it would end the slot. A look costs some reads of `/proc` and cgroup files, nothing per page.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from kvray.probes.cgroups import MIB, kernel_oom_kills
from kvray.probes.cpu import available_memory_mib, total_memory_mib

SMALLEST_MIB = 256.0
"""A trial that holds less is not why the memory is gone, and its end would not bring it back."""
_FLOOR_SHARE = 0.02
_FLOOR_MIB = 256.0
_LARGEST_SHARE = 0.05


def default_floor_mib(total_mib: float) -> float:
    """What must stay free: 2 % of the memory, at least 256 MiB; of small ones (a container's) 5 %."""
    return max(_FLOOR_SHARE * total_mib, min(_FLOOR_MIB, _LARGEST_SHARE * total_mib))


class MemoryWatch:
    """Watches over one trial. Make it right before the trial starts.

    Args:
        floor_mib: what must stay free; `None` for the default.
    """

    def __init__(self, *, floor_mib: float | None = None) -> None:
        self._floor_mib = default_floor_mib(total_memory_mib()) if floor_mib is None else floor_mib
        self._left_before_mib = available_memory_mib()
        self._kills_before = kernel_oom_kills()

    def shortage(self, pids: Callable[[], Sequence[int]]) -> str | None:
        """Why the trial, which consists of `pids`, must end now: less than the floor is left, and at least half of what
        was taken since it began is held by it. What others take is no reason."""
        left_mib = available_memory_mib()
        if left_mib >= self._floor_mib:
            return None
        held_mib = sum(_held_mib(pid) for pid in pids())
        if held_mib < max(SMALLEST_MIB, (self._left_before_mib - left_mib) / 2):
            return None
        return (
            f"it held {held_mib:,.0f} MiB of host memory and left {left_mib:,.0f} MiB free, under the floor of "
            f"{self._floor_mib:,.0f} MiB; killed before the kernel had to"
        )

    def kernel_killed(self) -> bool | None:
        """Whether the kernel's out-of-memory killer has been at work since the trial began; `None`: unknown."""
        kills = kernel_oom_kills()
        return None if kills is None or self._kills_before is None else kills > self._kills_before


def _held_mib(pid: int) -> float:
    """Memory that comes back when the process ends: files that it maps, such as weights, do not count.

    What is shared (MAP_SHARED, `/dev/shm`) counts for each process that has touched it.
    """
    with contextlib.suppress(OSError, ValueError):
        # proc_pid_status(5): "RssAnon:      1234 kB"
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
        held = [int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
        if held:
            return sum(held) / 1024
    with contextlib.suppress(psutil.Error):
        memory = psutil.Process(pid).memory_info()
        return float(memory.rss - getattr(memory, "shared", 0)) / MIB
    return 0.0
