"""SHA-256 of large files: said when it takes a while, and remembered in the cache folder until the file changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kvray.config import cache_dir
from kvray.files.file_systems import write_whole
from kvray.probes.cpu import available_cpus

_logger = logging.getLogger("kvray.engines")
_BLOCK = 1 << 20
_GIB = 1 << 30
_WORTH_A_WORD = _GIB // 2
"""Bytes that take about a second to read and hash."""
_SAY_EVERY_S = 10.0


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, remembered by what changes with it: path, inode, size, and when it was last changed."""
    return files_sha256((path,))[0]


def files_sha256(paths: Iterable[Path]) -> tuple[str, ...]:
    """The same of several files, a few at the same time."""
    wanted = tuple(paths)
    known = {path: known_sha256(path) for path in wanted}
    left = [path for path in known if known[path] is None]
    progress = _Progress(left)
    with ThreadPoolExecutor(max_workers=max(1, min(4, available_cpus()))) as pool:
        known.update(zip(left, pool.map(lambda path: _computed(path, progress), left), strict=True))
    return tuple(str(known[path]) for path in wanted)


def known_sha256(path: Path) -> str | None:
    """`file_sha256` where it is remembered, at once."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        known = json.loads(_memo(path).read_text(encoding="utf-8"))["sha256"]
        # It becomes the name of a folder: whatever else the memo may say by now is not followed.
        if re.fullmatch(r"[0-9a-f]{64}", known):
            return str(known)
    return None


class _Progress:
    """Says what is read, once at the beginning and then now and again, where it is worth a word."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._total = sum(path.stat().st_size for path in paths)
        self._read = 0
        self._said = time.monotonic()
        if self._total >= _WORTH_A_WORD:
            what = str(paths[0]) if len(paths) == 1 else f"{len(paths)} files in {paths[0].parent}"
            _logger.info("reading %s (%.1f GiB) once, to know the same weights again", what, self._total / _GIB)

    def add(self, read: int) -> None:
        """So many bytes more; called by several threads, so that a line may be said twice."""
        self._read += read
        if self._total >= _WORTH_A_WORD and time.monotonic() - self._said >= _SAY_EVERY_S:
            self._said = time.monotonic()
            _logger.info("%.1f of %.1f GiB read", self._read / _GIB, self._total / _GIB)


def _computed(path: Path, progress: _Progress) -> str:
    memo = _memo(path)  # of the file as it is before it is read
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            progress.add(len(block))
    with contextlib.suppress(OSError):  # the memo saves seconds; a cache that cannot be written costs no more than them
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_whole(memo, json.dumps({"path": str(path), "sha256": digest.hexdigest()}).encode())
    return digest.hexdigest()


def _memo(path: Path) -> Path:
    stat = path.stat()
    identity = f"{path.resolve()}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
    return cache_dir() / "hashes" / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.json"
