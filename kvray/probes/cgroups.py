"""What Linux control groups allow this process, and what they have kept from it: CPU time, memory. Both versions.

A limit of any group above the own one holds too. Where files cannot be read, nothing is limited.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MIB = 2**20
_OWN = Path("/proc/self/cgroup")
_MOUNTS = Path("/proc/self/mountinfo")


def group_folders(controller: str, own: Path = _OWN, mounts: Path = _MOUNTS) -> tuple[Path, ...]:
    """The folders whose files may limit this process: its group, and all groups above it as far as they are mounted.

    Version 2 comes first, then `controller`'s own hierarchy of version 1.

    Args:
        own: a file like `/proc/self/cgroup`: this process's group in each hierarchy.
        mounts: a file like `/proc/self/mountinfo`: where the hierarchies are mounted.
    """
    paths = dict(_own_groups(own))
    found: dict[Path, None] = {}
    for mount in sorted(_mounts(mounts), key=lambda one: not one.is_v2):
        path = paths.get("") if mount.is_v2 else paths.get(controller)
        if path is not None and (mount.is_v2 or controller in mount.controllers):
            found.update(dict.fromkeys(_up_to_mount(mount, path)))
    return tuple(found)


def cpu_quota(folders: Sequence[Path] | None = None) -> float | None:
    """CPUs' worth of time that this process and those beside it may use per period; `None` for no limit."""
    quotas = [_quota(folder) for folder in (group_folders("cpu") if folders is None else folders)]
    return min((quota for quota in quotas if quota is not None), default=None)


def quota_folders() -> tuple[Path, ...]:
    """The groups of this process that have a CPU quota."""
    return tuple(folder for folder in group_folders("cpu") if _quota(folder) is not None)


def throttled_s(folders: Sequence[Path]) -> float | None:
    """Seconds for which CPUs have stood still so far because a quota of the groups in `folders` was used up, summed
    over CPUs and groups; `None` where that is not counted."""
    stats = [_named_numbers(folder / "cpu.stat") for folder in folders]
    # Version 2 counts in microseconds, version 1 in nanoseconds.
    known = [
        one.get("throttled_usec", 0) / 1e6 + one.get("throttled_time", 0) / 1e9
        for one in stats
        if "throttled_usec" in one or "throttled_time" in one
    ]
    return sum(known) if known else None


def memory_limit_mib() -> float | None:
    """The lowest limit; `None` where there is none."""
    limits = [_memory_limit_mib(folder) for folder in group_folders("memory")]
    return min((limit for limit in limits if limit is not None), default=None)


def memory_left_mib() -> float | None:
    """What the limits leave; files that the kernel would drop again do not count as used. `None` without a limit."""
    left = [_memory_left_mib(folder) for folder in group_folders("memory")]
    return min((mib for mib in left if mib is not None), default=None)


def kernel_oom_kills(folders: Sequence[Path] | None = None, vmstat: Path = Path("/proc/vmstat")) -> int | None:
    """Processes that the kernel has ended for want of memory: in the own group where it counts (in version 1 without
    those below), else on the whole machine; `None` where it does not tell."""
    groups = group_folders("memory") if folders is None else folders
    places = [folder / name for folder in groups for name in ("memory.events", "memory.oom_control")]
    counts = (_named_numbers(place).get("oom_kill") for place in (*places, vmstat))
    return next((kills for kills in counts if kills is not None), None)


@dataclass(frozen=True, kw_only=True)
class _Mount:
    """A mounted hierarchy. `root` is the group that is seen at `folder`."""

    folder: Path
    root: str
    controllers: frozenset[str]
    is_v2: bool


def _own_groups(own: Path) -> Iterator[tuple[str, str]]:
    """(controller, path) pairs; version 2 has the empty name. Source: cgroups(7)."""
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def _mounts(mounts: Path) -> Iterator[_Mount]:
    """Source: proc_pid_mountinfo(5): the optional fields end with a hyphen."""
    for line in _read(mounts).splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) >= 5 and len(kind) >= 3 and kind[0] in ("cgroup", "cgroup2"):
            yield _Mount(
                folder=Path(_unescaped(fields[4])),
                root=_unescaped(fields[3]),
                controllers=frozenset(kind[2].split(",")),
                is_v2=kind[0] == "cgroup2",
            )


def _unescaped(text: str) -> str:
    """Blanks and the like are written as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _up_to_mount(mount: _Mount, path: str) -> Iterator[Path]:
    """The folder of the group at `path` and those above it, up to the mount's own.

    A container often sees its own group at the mount while `path` is the host's; what is not below the mount's root,
    or outside this process's namespace (`/..`), is taken for the mount's own folder.
    """
    own, root = PurePosixPath(path), PurePosixPath(mount.root)
    below = own.relative_to(root) if own.is_relative_to(root) and ".." not in own.parts else PurePosixPath()
    folder = mount.folder / below
    while folder != mount.folder:
        yield folder
        folder = folder.parent
    yield mount.folder


def _quota(folder: Path) -> float | None:
    v2 = _read(folder / "cpu.max").split()
    v1 = [*_read(folder / "cpu.cfs_quota_us").split(), *_read(folder / "cpu.cfs_period_us").split()]
    for words in (v2, v1):
        if len(words) == 2 and all(word.isdigit() and int(word) > 0 for word in words):
            return int(words[0]) / int(words[1])
    return None


def _memory_limit_mib(folder: Path) -> float | None:
    """`None` for no limit; version 1 says a number near 2**63 instead, which no machine's memory exceeds."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        words = _read(folder / name).split()
        if words and words[0].isdigit():
            return int(words[0]) / MIB
    return None


def _memory_left_mib(folder: Path) -> float | None:
    limit = _memory_limit_mib(folder)
    used = _read(folder / "memory.current").split() or _read(folder / "memory.usage_in_bytes").split()
    if limit is None or not used:
        return None
    files = _named_numbers(folder / "memory.stat")
    droppable = files.get("inactive_file", files.get("total_inactive_file", 0))
    return max(0.0, limit - (int(used[0]) - droppable) / MIB)


def _named_numbers(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    lines = (line.split() for line in _read(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
