"""Whole files in a results folder, local or in an object store: written so that no reader ever sees half of one.

Locally: a temporary file in `.partial/` of the results folder, fsync, rename, fsync of the target's folder, as far as
the file system offers them. Not beside the target, if it can be helped: Polars refuses to scan a folder that holds
anything but Parquet. In an object store an object appears only when its upload is complete.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pyarrow import ArrowException, BufferReader, NativeFile
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from kvray.errors import InvalidValueError, OutputError, ResultsError
from kvray.files.file_systems import LEFT_BESIDE, Weakness, sync_folder, write_whole
from kvray.files.remote import is_uri, open_uri, service_reason, upload, without_secrets
from kvray.store.paths import PARTIAL

_FAILURES = (OSError, ArrowException, UnicodeEncodeError)
_logger = logging.getLogger("kvray.store")
T = TypeVar("T")
R = TypeVar("R")

_REQUESTS_AT_ONCE = 16
_THREADS_HERE = min(4, os.cpu_count() or 1)
_WORTH_A_THREAD = 16
"""Files of single trials that make up for the start of another thread."""
_LARGEST_WHOLE = 256 * 2**20
"""Bytes. Manifests and reports are read whole; records, which may be more, are not."""


class ResultsFiles:
    """The files under `root`: a local path, or a `pyarrow.fs` URI such as `s3://bucket/prefix` or `gs://bucket/prefix`.

    Constructing touches nothing. Methods that write raise `OutputError`, those that read `ResultsError`; the message
    names the path and the file system's reason.

    Raises:
        InvalidValueError: on first use, where `root` is a URI of an unknown kind.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = str(root)
        self._opened: tuple[FileSystem, Path] | None = None

    @property
    def display_name(self) -> str:
        """`root` for messages: without the credentials and options that a URI may carry."""
        return without_secrets(self._root) if is_uri(self._root) else self._root

    @property
    def root(self) -> Path:
        """The folder within its file system; absolute where that is local."""
        return self._open()[1]

    @property
    def is_local(self) -> bool:
        """Whether paths name files that any program on this machine can open."""
        return isinstance(self._filesystem, LocalFileSystem)

    def shown(self, path: Path) -> str:
        """`path`, which lies under `root`, as a user can give it to another command."""
        if self.is_local:
            return shown(path)
        return "/".join((self.display_name.rstrip("/"), *path.relative_to(self.root).parts))

    def each(self, do: Callable[[T], R], items: Iterable[T], *, worth_a_thread: int = _WORTH_A_THREAD) -> list[R]:
        """What `do` returns for each of `items`, in their order. In an object store, where each waits for an answer,
        several are asked at once; here, where Arrow and numpy compute beside Python, many are shared among a few
        threads.

        Args:
            worth_a_thread: items that make up for the start of another thread.
        """
        listed = list(items)
        at_once = min(_THREADS_HERE, len(listed) // worth_a_thread) if self.is_local else _REQUESTS_AT_ONCE
        if at_once < 2:
            return [do(item) for item in listed]
        with ThreadPoolExecutor(at_once) as threads:
            return list(threads.map(do, listed))

    def check_writable(self, room: int = 0) -> None:
        """Make the folder, write a probe file of `room` bytes into it and remove it; warn of what the file system
        cannot do."""
        probe = self.root / f".write-check-{uuid.uuid4().hex}"
        try:
            for weakness in sorted(self._put(probe, os.urandom(room)), key=str):
                _logger.warning("Results folder %r: %s.", self.display_name, weakness.value)
            self._filesystem.delete_file(probe.as_posix())
        except _FAILURES as error:
            raise OutputError(
                f"Cannot write to results folder {self.display_name!r}: {reason(error)}.",
                hint=way_out(error),
            ) from error

    def write(self, path: Path, data: bytes) -> None:
        """Put `data` at `path`, whole or not at all, in place of what was there. Folders are made."""
        try:
            self._put(path, data)
        except _FAILURES as error:
            raise OutputError(f"Cannot write {self.shown(path)!r}: {reason(error)}.", hint=way_out(error)) from error

    def delete(self, path: Path) -> None:
        """Remove the file at `path`; nothing happens where there is none."""
        if self.is_local:
            self._check_inside(path.parent)
        try:
            self._filesystem.delete_file(path.as_posix())
        except FileNotFoundError:
            return
        except _FAILURES as error:
            raise OutputError(f"Cannot delete {self.shown(path)!r}: {reason(error)}.") from error

    def delete_leftovers(self, folder: Path) -> None:
        """Remove what killed writers left half-written for `folder`; nobody may be writing there."""
        for path in self._files(self.root / PARTIAL):
            if path.name.startswith(_partial_prefix(folder)):
                self.delete(path)
        for path in self._files(folder):
            if path.name.startswith(".") and path.name.endswith(LEFT_BESIDE):
                self.delete(path)

    def open(self, path: Path) -> NativeFile:
        """What lies at `path`, to be read in parts where it is local: a file may be larger than memory. From an object
        store it comes whole, in one request.

        Raises:
            FileNotFoundError: nothing does.
        """
        if not self.is_local:
            return BufferReader(self.read(path))
        with self._reading(path):
            return self._filesystem.open_input_file(path.as_posix())

    def read(self, path: Path) -> bytes:
        """What lies at `path`.

        Raises:
            FileNotFoundError: nothing does.
        """
        with self._reading(path):
            if self.is_local and (size := path.stat().st_size) > _LARGEST_WHOLE:
                raise OSError(errno.EFBIG, f"it has {size:,} bytes, more than kvray writes")
            with self._filesystem.open_input_stream(path.as_posix()) as stream:
                return bytes(stream.read())

    def list(self, folder: Path, suffix: str) -> list[Path]:
        """Visible files directly in `folder` whose names end in `suffix`, by name; empty where there is no folder."""
        return [path for path in self._files(folder) if path.name.endswith(suffix) and path.name[0] not in "._"]

    def _files(self, folder: Path) -> Iterator[Path]:
        try:
            if self.is_local:
                return iter(sorted(_local_files(folder)))
            found = self._remote_files(folder)
        except _FAILURES as error:
            raise self._unread("list", folder, error) from error
        return iter(sorted(Path(info.path) for info in found))

    def ages_s(self, folder: Path, prefix: str) -> dict[Path, float]:
        """Files of an object store in `folder` whose names begin with `prefix`, each with the seconds by which it is
        older than the newest of them. The service's clock tells, not this machine's."""
        try:
            found = [one for one in self._remote_files(folder) if Path(one.path).name.startswith(prefix)]
        except _FAILURES as error:
            raise ResultsError(f"Cannot list {self.shown(folder)!r}: {reason(error)}.") from error
        written = {Path(one.path): (one.mtime_ns or 0) / 1e9 for one in found}
        newest = max(written.values(), default=0.0)
        return {path: newest - moment for path, moment in written.items()}

    def _remote_files(self, folder: Path) -> Sequence[FileInfo]:
        """
        Raises:
            OSError: they cannot be listed, or there is no such bucket, for which Arrow lists nothing.
        """
        found = self._filesystem.get_file_info(FileSelector(folder.as_posix(), allow_not_found=True))
        if not found and self._filesystem.get_file_info(folder.parts[0]).type == FileType.NotFound:
            raise OSError(errno.ENOENT, f"there is no bucket {folder.parts[0]!r}")
        return [info for info in found if info.type == FileType.File]

    def _put(self, path: Path, data: bytes) -> frozenset[Weakness]:
        if self.is_local:
            partial = self.root / PARTIAL
            for folder in (path.parent, partial):
                self._check_inside(folder)
            return _write_local(path, data, partial)
        upload(self._filesystem, path.as_posix(), data)
        return frozenset()

    @contextlib.contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except _FAILURES as error:
            raise self._unread("read", path, error) from error

    def _unread(self, action: str, path: Path, error: BaseException) -> ResultsError:
        """The error for a `path` that could not be read or listed. A file in the place of the results folder is the
        likeliest mistake."""
        if self.is_local and self.root.is_file():
            return ResultsError(
                f"A results folder is needed, and {self.display_name!r} is a file.",
                hint="Name the folder that kvray tune wrote, in which reports/RUN_ID/best_plan.json lies. kvray apply "
                "shows a plan by itself.",
            )
        return ResultsError(f"Cannot {action} {self.shown(path)!r}: {reason(error)}.")

    def _check_inside(self, folder: Path) -> None:
        """A results folder that somebody else has made may hold links to what is not theirs."""
        try:
            is_inside = folder.resolve().is_relative_to(self.root.resolve())
        except (OSError, RuntimeError):  # links that lead to themselves
            is_inside = False
        if not is_inside:
            raise OutputError(
                f"Cannot write into {shown(folder)!r}: a link leads out of the results folder.",
                hint="Replace the link by a folder, or link the whole results folder.",
            )

    @property
    def _filesystem(self) -> FileSystem:
        return self._open()[0]

    def _open(self) -> tuple[FileSystem, Path]:
        """Opened on first use: for S3 this may ask the service for the bucket's region."""
        if self._opened is None:
            self._opened = _open_uri(self._root) if is_uri(self._root) else _open_local(self._root)
        return self._opened


def shown(path: Path) -> str:
    """`path` for messages: bytes of its name that are not UTF-8 are escaped."""
    return path.as_posix().encode(errors="surrogateescape").decode(errors="backslashreplace")


def reason(error: BaseException) -> str:
    """Why `error` happened, on one line."""
    if isinstance(error, UnicodeEncodeError):
        return "its name is not UTF-8"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    if told := service_reason(text):
        return told
    return text.splitlines()[0].rstrip(".")


def way_out(error: BaseException) -> str:
    """What to do where a results folder cannot be written because of `error`, as a sentence."""
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"{'Make room there, or choose' if is_full else 'Choose'} another folder with --output."


def _open_local(root: str) -> tuple[FileSystem, Path]:
    try:
        path = Path(root).expanduser().absolute()
        path.as_posix().encode()  # Arrow takes names in UTF-8 alone
        if "\0" in root:
            raise ValueError("its name holds a null character")
    except (RuntimeError, ValueError) as error:
        raise InvalidValueError(
            f"Results folder {root!r} cannot be opened: {reason(error)}.", hint="Use the path of a folder."
        ) from error
    return LocalFileSystem(), path


def _open_uri(uri: str) -> tuple[FileSystem, Path]:
    try:
        filesystem, path = open_uri(uri)
    except (ArrowException, ValueError, OSError) as error:
        shown = without_secrets(uri)
        raise InvalidValueError(
            f"Results folder {shown!r} cannot be opened: {reason(error).replace(uri, shown)}.",
            hint="Use a local path, or a URI such as s3://bucket/prefix or gs://bucket/prefix.",
        ) from error
    return filesystem, Path(path)


def _local_files(folder: Path) -> Iterator[Path]:
    """Not by Arrow, which lists nothing at all where one name is not UTF-8."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # a link that leads to itself
                if entry.is_file():
                    yield Path(entry.path)


def _write_local(path: Path, data: bytes, partial: Path) -> frozenset[Weakness]:
    weak = _make_folder(path.parent) | _make_folder(partial)
    temporary = partial / f"{_partial_prefix(path.parent)}{path.name}.{uuid.uuid4().hex}"
    return weak | write_whole(path, data, via=temporary)


def _partial_prefix(folder: Path) -> str:
    """E.g. `trials.run_id=…~`; ids hold no `~`, so that no prefix of one run is one of another's."""
    return f"{folder.parent.name}.{folder.name}~"


def _make_folder(folder: Path) -> frozenset[Weakness]:
    """Make `folder` and its parents; each new name is synced into the folder above, or a power cut could undo it."""
    if folder.is_dir():
        return frozenset()
    weak = _make_folder(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file, not a folder") from None
    return weak | sync_folder(folder.parent)
