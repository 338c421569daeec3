"""Brings a results folder home through the job server alone: small jobs print its files, a part at a time.

Parts lie in a hidden folder until all are there, so that a fetch that was cut goes on where it stopped. Each file is
checked by size and SHA-256 before it takes its place.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kvray.errors import OutputError, ResultsError, SweepError
from kvray.jobs.client import JobServer, JobState
from kvray.jobs.package import write_request
from kvray.jobs.sender import sha256_of
from kvray.store.files import reason, way_out

PART_BYTES = 16 * 2**20
_WAIT_S = 120.0
_MOST_CHANGES = 10
"""So often the results of a running job may change while they come; each time they come anew."""
_STREAM, _LISTED = "stream", "files.json"
"""Names of the bytes that have come, and of what all of them will be."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file of the results as it is on the cluster."""

    name: str
    size: int
    sha256: str

    def is_here(self, folder: Path) -> bool:
        """Whether `folder` holds it, whole."""
        path = folder / self.name
        return path.is_file() and path.stat().st_size == self.size and sha256_of(path) == self.sha256


def fetch_results(
    server: JobServer,
    folder: Path,
    *,
    results: str,
    run_id: str,
    node: str | None,
    tell: Callable[[int, int], None],
    part_bytes: int = PART_BYTES,
) -> tuple[RemoteFile, ...]:
    """Copy what the folder `results` of `node` holds of `run_id` into `folder`; returns the files.

    Args:
        run_id: id of a sweep or of a batch.
        tell: is told how many bytes have come, and of how many.

    Raises:
        ResultsError: there is nothing, or what came is damaged.
        SweepError: the connection was lost; what has come is kept, and the next call goes on from there.
        OutputError: `folder` cannot be written.
    """
    name = hashlib.sha256(f"{server.address} {results} {run_id}".encode()).hexdigest()[:16]
    partial = folder / ".partial" / f"fetch-{name}"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        files = _fetched(server, folder, partial, results=results, run_id=run_id, node=node, tell=tell, most=part_bytes)
        if (partial / _STREAM).exists():
            _unpack(partial / _STREAM, folder, partial, files)
        shutil.rmtree(partial)
        _remove_merged(folder, folder / ".partial" / f"fetched-{name}.json", files)
    except OSError as error:
        kept = " What has come is kept: repeat the command to go on from there." if (partial / _STREAM).exists() else ""
        raise OutputError(
            f"Cannot write to {str(folder)!r}: {reason(error)}.", hint=f"{way_out(error)}{kept}"
        ) from error
    return files


def _fetched(
    server: JobServer,
    folder: Path,
    partial: Path,
    *,
    results: str,
    run_id: str,
    node: str | None,
    tell: Callable[[int, int], None],
    most: int,
) -> tuple[RemoteFile, ...]:
    """Have all files in `partial`, one after another, unless `folder` has them; returns which they are.

    Raises:
        As `fetch_results`.
    """
    stream, known, changes, is_asked = partial / _STREAM, _listed(partial / _LISTED), 0, False
    while True:
        start = stream.stat().st_size if stream.exists() and known is not None else 0
        if known is not None and is_asked and start >= sum(one.size for one in known):
            return known
        try:
            files, data = _part(server, results, run_id=run_id, node=node, start=start, most=most)
        except SweepError as error:
            if start:
                error.hint = "What has come is kept: repeat the command to go on from there."
            raise
        is_asked = True
        if not files:
            raise ResultsError(f"{results!r} on the cluster holds no results of {run_id}.")
        if files != known:  # the first part, or the sweep has gone on meanwhile
            (partial / _LISTED).write_text(json.dumps([vars(one) for one in files]), encoding="utf-8")
            stream.unlink(missing_ok=True)
            if all(one.is_here(folder) for one in files):
                return files
            known, changes = files, changes + 1
            if changes > _MOST_CHANGES:
                raise ResultsError(
                    f"The results of {run_id} change on the cluster faster than they come.",
                    hint="Repeat the command when the job has ended.",
                )
            if start:
                continue
        with stream.open("ab") as file:
            file.write(data)
        tell(start + len(data), sum(one.size for one in files))
        if not data:
            return files


def _remove_merged(folder: Path, noted: Path, files: tuple[RemoteFile, ...]) -> None:
    """Remove what an earlier fetch of a running job brought and the cluster has merged into others since: a table would
    have those trials twice. What `noted` says was brought is `files` from now on."""
    names = {one.name for one in files}
    for one in _listed(noted) or ():
        if one.name not in names and not _leads_out(one.name) and one.is_here(folder):
            (folder / one.name).unlink()
    noted.write_text(json.dumps([vars(one) for one in files]), encoding="utf-8")


def _listed(path: Path) -> tuple[RemoteFile, ...] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return tuple(RemoteFile(**one) for one in found)
    except (OSError, ValueError, TypeError):
        return None


def _part(
    server: JobServer, results: str, *, run_id: str, node: str | None, start: int, most: int
) -> tuple[tuple[RemoteFile, ...], bytes]:
    with tempfile.TemporaryDirectory(prefix="kvray-") as folder:
        entrypoint = write_request(Path(folder), results=results, run_id=run_id, start=start, most=most)
        job_id = server.submit(entrypoint=entrypoint, folder=Path(folder), node=node)
    job = server.wait(job_id, within_s=_WAIT_S)
    if job.state is not JobState.SUCCEEDED:
        server.stop(job_id)
        reason = job.message.strip().splitlines()[-1:] or [f"its job is {job.state.value}"]
        raise ResultsError(
            f"The cluster does not send {results!r}: {reason[0].rstrip('.')}.",
            hint="The node that holds the results must be up. Repeat the command to try again.",
        )
    return _read(server.log(job_id))


def _read(log: str) -> tuple[tuple[RemoteFile, ...], bytes]:
    lines = log.splitlines()
    first = next((place for place, line in enumerate(lines) if line.startswith('{"files"')), None)
    if first is None or lines[-1] != "end":
        raise ResultsError("What came from the cluster is cut short.", hint="Repeat the command to go on from there.")
    listed: list[dict[str, Any]] = json.loads(lines[first])["files"]
    files = tuple(RemoteFile(name=_safe(one["name"]), size=one["bytes"], sha256=one["sha256"]) for one in listed)
    return files, b"".join(base64.b64decode(line) for line in lines[first + 1 : -1])


def _safe(name: str) -> str:
    if _leads_out(name):
        raise ResultsError(f"The cluster sends a file named {name!r}, which would lie outside the folder.")
    return name


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def _unpack(stream: Path, folder: Path, partial: Path, files: tuple[RemoteFile, ...]) -> None:
    with stream.open("rb") as source:
        for one in files:
            data = source.read(one.size)
            if hashlib.sha256(data).hexdigest() != one.sha256:
                shutil.rmtree(partial)
                raise ResultsError(f"{one.name} came damaged.", hint="Repeat the command to fetch it again.")
            target, written = folder / one.name, partial / "file"
            written.write_bytes(data)
            target.parent.mkdir(parents=True, exist_ok=True)
            written.replace(target)
