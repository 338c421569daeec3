"""Ends what a slot leaves behind however it ends, SIGKILL included: processes of its trials, temporary folders and
shared memory.

`TrialProcess.close` does the same while the slot lives. `clean_up` runs in the program of `reaper`, so this module
imports nothing else but the standard library.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from kvray.trial.reaper import Reaper, Told

MARK = "KVRAY_LAUNCHER"
"""Environment variable that all processes of a launcher's trials inherit."""
KILL_S = 4.0
"""In which all of them must have ended."""
_ROUND_S = 0.02


class TrialReaper:
    """The slot's side: what it is told of goes with this process."""

    def __init__(self) -> None:
        self._reaper = Reaper(clean_up)

    def end_processes(self, mark: str) -> None:
        """End the processes that have `mark` in their environment, and their descendants."""
        self._reaper.tell("mark", mark)

    def remove_folder(self, folder: Path) -> None:
        """Remove the folder, whether or not it exists yet."""
        self._reaper.tell("folder", str(folder))

    def remove_shared_memory(self, path: str, inode: int) -> None:
        """Remove the file at `path`, if it is still the same and no living process uses it."""
        self._reaper.tell("shared", path, inode)


@functools.cache
def trial_reaper() -> TrialReaper:
    """The one of this process, in which all launchers share multiprocessing's fork server too."""
    return TrialReaper()


def clean_up(told: Told) -> None:
    """End and remove all that the slot has told of."""
    end_processes(words[1] for words in told if words[0] == "mark")
    for words in told:
        if words[0] == "folder":
            remove_tree(Path(words[1]))
    _remove_shared((words[1], words[2]) for words in told if words[0] == "shared")


def remove_tree(folder: Path) -> None:
    """Delete `folder` with all in it as far as possible, also where permissions have been taken away."""
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
    for parent, names, _ in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                path = Path(parent, name)
                if not path.is_symlink():
                    path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def used_inodes(folder: Path, pids: Iterable[int]) -> set[int]:
    """Identities of the files in `folder` that the processes `pids` have open or mapped.

    Not by name: glibc makes a semaphore under a temporary one, by which it stays known here, and links it to its own.
    """
    used: set[int] = set()
    within = f"{folder}/"
    for pid in pids:
        with contextlib.suppress(OSError):
            for number in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(number.readlink()).startswith(within):
                        used.add(number.stat().st_ino)
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines():
                if within in line:  # proc_pid_maps(5): address perms offset dev inode pathname
                    used.add(int(line.split(maxsplit=5)[4]))
    return used


class _Process(NamedTuple):
    parent: int
    is_alive: bool


def end_processes(marks: Iterable[str]) -> None:
    """Kill all that bear one of `marks`, and their descendants, until none is left.

    The uppermost go last, stopped so that they start no more: a fork server is the parent of whatever loses its own
    (`orphans.adopt_orphans`), so what has wiped its environment stays below it, where it is found.
    """
    wanted = [f"{MARK}={mark}".encode() for mark in marks]
    deadline = time.monotonic() + KILL_S
    while time.monotonic() < deadline:
        processes = _processes()
        found = _with_descendants({pid for pid in processes if _is_marked(pid, wanted)}, processes)
        found = {pid for pid in found if processes[pid].is_alive and pid != os.getpid()}
        if not found:
            return
        uppermost = {pid for pid in found if processes[pid].parent not in found}
        below = found - uppermost
        for pid in uppermost:
            _send(pid, signal.SIGSTOP if below else signal.SIGKILL)
        for pid in below:
            _send(pid, signal.SIGKILL)
        time.sleep(_ROUND_S)


def _processes() -> dict[int, _Process]:
    return {pid: one for pid in _pids() for one in _process(pid)}


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _process(pid: int) -> Iterator[_Process]:
    with contextlib.suppress(OSError, ValueError):
        # proc_pid_stat(5): pid (name, which may hold anything) state ppid …
        state, parent = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:2]
        yield _Process(int(parent), state not in (b"Z", b"X"))


def _is_marked(pid: int, wanted: Iterable[bytes]) -> bool:
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return any(word in environment for word in wanted)
    return False


def _with_descendants(tops: set[int], processes: dict[int, _Process]) -> set[int]:
    found = set(tops)
    while more := {pid for pid, one in processes.items() if one.parent in found} - found:
        found |= more
    return found


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _remove_shared(entries: Iterable[tuple[str, int]]) -> None:
    left = [Path(path) for path, inode in entries if _inode(Path(path)) == inode]
    used = {inode for folder in {path.parent for path in left} for inode in used_inodes(folder, _pids())}
    for path in left:
        if _inode(path) not in used:
            with contextlib.suppress(OSError):
                path.unlink()


def _inode(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return path.lstat().st_ino
    return None
