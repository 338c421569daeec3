"""Files that a process holds for as long as it lives, and that say who it is: `kill -9` ends a hold like any other end.

By `flock`, which belongs to this machine and, on most network file systems, to those that share the folder. Where there
is none (Windows, some mounts) everyone gets the file, and `Hold.keeps_others_out` is false.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kvray.files.file_systems import Lock, lock_file

_ATTEMPTS = 20
_WAIT_S = 0.5


class HeldError(Exception):
    """Another process holds the file.

    Attributes:
        holder: what it says of itself; empty where it has not written that yet.
    """

    def __init__(self, holder: Mapping[str, Any]) -> None:
        super().__init__(str(holder))
        self.holder = holder


class Hold:
    """A file that this process holds. Made by `hold`.

    Attributes:
        keeps_others_out: whether the file system has locks.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path = path
        self._about = json.dumps(dict(about)).encode()
        self._handle: int | None = None
        self.keeps_others_out = False

    def renew(self) -> None:
        """Hold the file that lies at the path now: the one that was held may have been removed, with its folder, and a
        lock on a file without a name keeps nobody out. Nothing happens where it still lies there.

        Raises:
            HeldError: another process was faster, or another `hold` in this one.
            OSError: the file cannot be made.
        """
        if self._handle is not None and _lies_at(self._path, self._handle):
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle, self.keeps_others_out = _opened(self._path)
        self.release()
        self._handle = handle
        os.truncate(handle, 0)
        os.write(handle, self._about)

    def release(self) -> None:
        """End it; removes the file where it is still the one that was held, not one that another process has made."""
        if self._handle is None:
            return
        if _lies_at(self._path, self._handle):
            with contextlib.suppress(OSError):  # while it is still locked: afterwards it may be another's
                self._path.unlink()
        os.close(self._handle)
        self._handle = None


@contextlib.contextmanager
def hold(path: Path, about: Mapping[str, Any]) -> Iterator[Hold]:
    """Hold `path`, which says `about` meanwhile and is gone afterwards. Its folder is made.

    Raises:
        HeldError: another process does, or another `hold` in this one.
        OSError: the file cannot be made.
    """
    held = Hold(path, about)
    try:
        held.renew()
        yield held
    finally:
        held.release()


def holder_of(path: Path) -> Mapping[str, Any] | None:
    """What the process that holds `path` says of itself; `None` where nobody does, and then the file is removed."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if lock_file(handle) is Lock.ANOTHERS:
            return _read(path)
        if _lies_at(path, handle):
            path.unlink(missing_ok=True)
        return None
    except OSError:
        return None
    finally:
        os.close(handle)


@contextlib.contextmanager
def exclusively(path: Path) -> Iterator[bool]:
    """Wait until no other process is in such a `with` of the same file, which is made and stays. Gives whether that is
    certain: not where the file system has no locks.

    Raises:
        OSError: the file cannot be made.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while (lock := lock_file(handle)) is Lock.ANOTHERS:
            time.sleep(_WAIT_S)
        yield lock is Lock.OURS
    finally:
        os.close(handle)


def _opened(path: Path) -> tuple[int, bool]:
    """A handle of the file that lies at `path` now, not of one that its last holder has just removed, and whether it is
    locked. It is not where the file system has no locks."""
    for _ in range(_ATTEMPTS):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            lock = lock_file(handle)
            if lock is Lock.ANOTHERS:
                raise HeldError(_read(path))
            if _lies_at(path, handle):
                return handle, lock is Lock.OURS
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    raise HeldError(_read(path))


def _lies_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except OSError:
        return False


def _read(path: Path) -> Mapping[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}
