"""POSIX shared memory and semaphores that a trial left behind; they would stay until the machine starts again.

The rule: an entry of `/dev/shm` is removed when it appeared while the trial ran, belongs to our user, was seen open or
mapped in a process of the trial soon after it appeared or when the trial was ended, and no living process uses it any
more. One that a trial makes and dies of within a look's interval cannot be told from another program's, and stays.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from kvray.trial.trial_reaper import TrialReaper, used_inodes

FOLDER = Path("/dev/shm")
_logger = logging.getLogger("kvray.trial")


class _Entry(NamedTuple):
    path: str
    inode: int


class SharedMemoryWatch:
    """Make it right before the trial starts; `look` now and then and before its processes are ended, then `clean`.

    Args:
        heir: who cleans if this process dies.
    """

    def __init__(self, folder: Path = FOLDER, *, heir: TrialReaper | None = None) -> None:
        self._folder = folder
        self._heir = heir
        self._known = _entries(folder)
        self._made_by_trial: set[_Entry] = set()

    def look(self, pids: Callable[[], Sequence[int]]) -> None:
        """Find out of each new entry whether one of the trial's processes, `pids`, has it. Costs next to nothing where
        there is none."""
        new = _entries(self._folder) - self._known
        if new:
            self._known |= new
            used = used_inodes(self._folder, pids())
            made = {entry for entry in new if entry.inode in used}
            self._made_by_trial |= made
            for entry in made:
                if self._heir is not None:
                    self._heir.remove_shared_memory(entry.path, entry.inode)

    def clean(self) -> None:
        """Remove what the trial has left, once its processes are gone."""
        left = self._made_by_trial & _entries(self._folder)
        if left:
            used = used_inodes(self._folder, psutil.pids())
            for entry in left:
                if entry.inode in used:
                    _logger.warning("shared memory %r of a trial is used by another process and stays", entry.path)
                    continue
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()
        self._made_by_trial.clear()


def _entries(folder: Path) -> set[_Entry]:
    """Files of our user."""
    found: set[_Entry] = set()
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if status.st_uid == os.getuid() and entry.is_file(follow_symlinks=False):
                    found.add(_Entry(entry.path, status.st_ino))
    return found
