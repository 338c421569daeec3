"""With how many threads llama.cpp computes where nothing is set: one for each physical core, as its tools do."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from kvray.probes.cpu import available_cpus, openmp_threads

_CPUS = Path("/sys/devices/system/cpu")
_FAST_CORES = Path("/sys/devices/cpu_core/cpus")
"""CPUs of the fast cores, where a processor has slow ones too."""


def default_threads() -> int:
    """What a process of llama.cpp is given here: the threads that a user or a slot has set for it, else one for each
    physical core, and never more than the CPUs that it may use."""
    return openmp_threads() or usual_threads()


def usual_threads() -> int:
    """What llama.cpp takes here by itself."""
    return min(physical_cores(), available_cpus())


def physical_cores() -> int:
    """Cores of this machine that llama.cpp counts: siblings once, slow ones of a hybrid processor not at all. Source:
    `common_cpu_get_num_math` of llama.cpp."""
    fast = _fast_cpus()
    siblings = {
        text
        for path in _CPUS.glob("cpu[0-9]*/topology/thread_siblings")
        if (not fast or int(path.parts[-3][3:]) in fast) and (text := _read(path))
    }
    return len(siblings) or available_cpus()


def _fast_cpus() -> frozenset[int]:
    found: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", _read(_FAST_CORES)):
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="ascii").strip()
    return ""
