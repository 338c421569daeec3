"""Files written whole and files locked, as far as a file system lets one: some refuse to sync folders (CIFS, many in
user space), to sync at all, to rename, or to lock."""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import tempfile
import uuid
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_ENOTSUPP = 524
"""The kernel's own word, which some file systems let through; the C library knows no name for it."""
NOT_OFFERED = {errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, _ENOTSUPP}
"""What says that a file system knows no such call, where nothing else is wrong with it."""
LEFT_BESIDE = "~"
"""How the name of a hidden file ends that a killed `write_whole` has left beside the one it was to become."""
_NO_FOLDER_SYNC = NOT_OFFERED | {errno.EACCES, errno.EPERM, errno.EISDIR}
NO_RENAME = NOT_OFFERED | {errno.EXDEV, errno.EPERM}
"""What says that a file system does not rename files, or not from that folder to this one."""


_NO_LOCKS = NOT_OFFERED | {errno.ENOLCK}
_HELD = (errno.EAGAIN, errno.EACCES)
"""The latter on CIFS (flock(2))."""


class Weakness(enum.Enum):
    """What a file system does not offer; the value says what that costs."""

    FOLDER_SYNC = "it cannot sync folders: a power cut may cost the last records"
    FILE_SYNC = "it cannot sync files: a power cut may cost the last records"
    RENAME = "it cannot rename files: a record that is being written when kvray is killed is lost"


def write_whole(path: Path, data: bytes, *, via: Path | None = None) -> frozenset[Weakness]:
    """Put `data` at `path`, durably, in place of what was there; no reader ever sees half of it.

    Args:
        via: where it is written first; by default, and where that is too far to be renamed from, beside `path` in a
            hidden file whose name ends in `~`.

    Returns:
        what the file system refused, so that less than that holds.

    Raises:
        OSError: `path` cannot be written.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}{LEFT_BESIDE}")
    weak: set[Weakness] = set()
    if not any(_write_and_rename(path, data, temporary, weak) for temporary in (via, beside) if temporary):
        weak.add(Weakness.RENAME)
        _write(path, data, "wb", weak)
    return frozenset(weak) | sync_folder(path.parent)


def sync_folder(folder: Path) -> frozenset[Weakness]:
    """Make names that were added in `folder` outlast a power cut. Returns what the file system refused.

    Raises:
        OSError: the disk fails.
    """
    if os.name == "nt":  # Windows has no handle for a folder to sync
        return frozenset()
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
        return frozenset({Weakness.FOLDER_SYNC})
    return frozenset()


class Lock(enum.Enum):
    """How an attempt to lock a file has ended."""

    OURS = enum.auto()
    ANOTHERS = enum.auto()
    NONE = enum.auto()
    """The file system has no locks."""


def lock_file(handle: int) -> Lock:
    """Lock the open file until `handle` is closed, or this process has ended; does not wait.

    Raises:
        OSError: the disk fails.
    """
    if fcntl is None:
        return Lock.NONE
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return Lock.ANOTHERS
        if error.errno not in _NO_LOCKS:
            raise
        return Lock.NONE
    return Lock.OURS


def has_locks(folder: Path) -> bool:
    """Whether files in `folder`, which can be written, can be locked."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return lock_file(file.fileno()) is Lock.OURS


def _write_and_rename(path: Path, data: bytes, temporary: Path, weak: set[Weakness]) -> bool:
    """Whether it could be renamed; if not, nothing is left behind."""
    try:
        _write(temporary, data, "xb", weak)
        try:
            temporary.replace(path)
        except OSError as error:
            if error.errno not in NO_RENAME:
                raise
            return False
    finally:
        with contextlib.suppress(OSError):  # gone already, if all went well
            temporary.unlink()
    return True


def _write(path: Path, data: bytes, mode: str, weak: set[Weakness]) -> None:
    with path.open(mode) as file:
        file.write(data)
        file.flush()
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in NOT_OFFERED:
                raise
            weak.add(Weakness.FILE_SYNC)
