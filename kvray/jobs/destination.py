"""Where fetched results go: a local folder, or a URI, which is filled from a folder of the cache."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kvray.config import cache_dir
from kvray.files.remote import is_uri
from kvray.jobs.fetching import RemoteFile
from kvray.store.files import ResultsFiles

_FETCHED = "fetched"
Put = Callable[[Sequence[RemoteFile]], None]


@contextmanager
def destination(output: str) -> Iterator[tuple[Path, Put]]:
    """The local folder to fetch into, and what puts the files that have come there where `output` says.

    What was fetched for a URI stays in the cache until all of it has been uploaded, so that a fetch that is repeated
    goes on from there.

    Raises:
        OutputError: what `output` names cannot be written.
    """
    if not is_uri(output):
        yield Path(output), lambda _: None
        return
    target, folder = ResultsFiles(output), _cached(output)
    target.check_writable()
    yield folder, lambda files: _upload(files, folder, target)
    shutil.rmtree(folder, ignore_errors=True)


def _cached(output: str) -> Path:
    return cache_dir() / _FETCHED / hashlib.sha256(output.encode()).hexdigest()[:16]


def _upload(files: Sequence[RemoteFile], folder: Path, target: ResultsFiles) -> None:
    """Manifests last: what has one is there as a whole."""
    manifests = [one for one in files if one.name.endswith(".json") and one.name.count("/") == 1]
    others = [one for one in files if one not in manifests]

    def put(one: RemoteFile) -> None:
        target.write(target.root / one.name, (folder / one.name).read_bytes())

    target.each(put, others)
    target.each(put, manifests)
