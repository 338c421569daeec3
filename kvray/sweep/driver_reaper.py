"""Cleans up after a driver that was killed; `sweep.session` makes a `DriverReaper` before it turns to Ray.

Two agents of a killed driver's own Ray live on for a minute (Ray 2.60 waits so long for a server that is gone), and its
folders for ever. `clean_up` runs in the program of `trial.reaper`, so this module imports nothing else but the standard
library.

Where Ray's C++ ended the driver, its reason stands in the sweep's log, which goes with the driver's folder. So it is
said here.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import shutil
import signal
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kvray.trial.reaper import Reaper, Told

GRACE_S = 2.0
"""For Ray's own way out. What dies by itself does so within 1.6 s."""
_POLL_S = 0.1
_NOTHING_LEFT, _KEEP_LOGS, _LAST_WORDS = "nothing left", "keep logs", "last words"
"""What a driver may say before it ends."""
_FATAL = re.compile(rb"^\[[^\]\n]* [CF] \d+ \d+\] *(.*)", re.MULTILINE)
"""`[2026-01-01 00:00:00,000 C 7 7] file.cc:1: reason`; other lines have another letter, and others follow."""
_NEW_HEAD = "WrongClusterID"
_SESSION_TIME = "%Y-%m-%d_%H-%M-%S_%f"
"""Ray's local time in `session_TIME_PID`."""


class DriverReaper:
    """The driver's side: start it before Ray, `dismiss` it when Ray is gone.

    Args:
        folder: goes with a killed driver; logs of what Ray says lie directly in it.
        ray_folder: in which a private Ray makes a folder for its session, which goes too.
        standard_error: descriptor for the last words of Ray; `None` leaves them unsaid.
    """

    def __init__(self, folder: Path, *, ray_folder: Path | None = None, standard_error: int | None = None) -> None:
        since = dt.datetime.now().strftime(_SESSION_TIME)
        self._last_words = ""
        self._reaper = Reaper(clean_up, standard_error=standard_error)
        self._reaper.tell(os.getpid(), str(folder), None if ray_folder is None else str(ray_folder), since)

    def dismiss(self) -> None:
        """Nothing is left to clean up."""
        self._reaper.tell(_NOTHING_LEFT)
        self._reaper.close()

    def leave_last_words(self, text: str, *, reason: str) -> None:
        """What to say if Ray's C++ ends this process, with why in place of `reason`."""
        if text != self._last_words:
            self._last_words = text
            self._reaper.tell(_LAST_WORDS, text, reason)

    def keep_logs(self) -> None:
        """This process is about to leave a Ray that broke down: all is to be cleaned up but its session's folder."""
        self._reaper.tell(_KEEP_LOGS)
        self._reaper.close()


def clean_up(told: Told) -> None:
    """Clean up everything, unless the driver has said a word before it ended. A driver that was killed says none."""
    (driver, folder, ray_folder, since), *words = told
    if [_NOTHING_LEFT] in words:
        return
    keeps_logs = [_KEEP_LOGS] in words
    if not keeps_logs:
        _say_fatal_words(Path(folder), [text for kind, *text in words if kind == _LAST_WORDS])
    time.sleep(GRACE_S)
    for pid in ray_processes_of(driver):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    sessions = [] if ray_folder is None or keeps_logs else sessions_of(driver, Path(ray_folder), since)
    remove_folders([Path(folder), *sessions], within_s=GRACE_S)


def _say_fatal_words(folder: Path, last_words: Sequence[Sequence[str]]) -> None:
    if (reason := fatal_words(folder)) is None:
        return
    if _NEW_HEAD in reason:
        reason = "its head was started anew and does not know this sweep"
    text = f"Ray has ended the sweep: {reason}"
    if last_words:
        words, place = last_words[-1]
        text = words.replace(place, reason.rstrip("."))
    with contextlib.suppress(OSError):
        sys.stderr.write(f"kvray: {text}\n")
        sys.stderr.flush()


def ray_processes_of(driver: int) -> list[int]:
    """Processes that write logs of the Ray that the process `driver` started; its folder's name ends in that number."""
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _writes_logs_of(entry, driver)]


def _writes_logs_of(process: Path, driver: int) -> bool:
    try:
        return any(_is_log_of(descriptor, driver) for descriptor in (process / "fd").iterdir())
    except OSError:  # it has ended, or is another user's
        return False


def _is_log_of(descriptor: Path, driver: int) -> bool:
    with contextlib.suppress(OSError):  # closed meanwhile
        parts = descriptor.readlink().parts
        is_log = any(part.startswith("session_") and part.endswith(f"_{driver}") for part in parts)
        return is_log and bool(descriptor.lstat().st_mode & stat.S_IWUSR)  # who reads them is a person
    return False


def sessions_of(driver: int, ray_folder: Path, since: str) -> list[Path]:
    """Folders of the Rays that the process `driver` started after `since`, a time as their names have it. An older one
    may be of another process that had its number."""
    return [one for one in ray_folder.glob(f"session_*_{driver}") if one.name > f"session_{since}"]


def remove_folders(folders: Sequence[Path], *, within_s: float) -> None:
    """Delete them although processes that are about to end still write there."""
    deadline = time.monotonic() + within_s
    while left := [folder for folder in folders if folder.is_dir()]:
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > deadline:
            return
        time.sleep(_POLL_S)


def fatal_words(folder: Path) -> str | None:
    """With what Ray's C++ has ended the process that has its logs in `folder`, if it has."""
    found: list[bytes] = []
    for log in folder.glob("*.log"):
        with contextlib.suppress(OSError):
            found += _FATAL.findall(log.read_bytes())
    return " ".join(found[-1].decode(errors="replace").split()) if found else None
