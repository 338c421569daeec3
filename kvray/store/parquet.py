"""`ResultsStore`: everything that is written to and read from a results folder.

One sweep has one writer. Readers may come at any time, from any process: what they see is whole.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import compress
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from kvray.errors import ResultsError, describe_problems
from kvray.record import Run, TrialRecord, TrialResult
from kvray.store.files import ResultsFiles, reason
from kvray.store.manifest import MANIFEST_VERSION, SweepManifest
from kvray.store.paths import NOT_LAUNCHED, PART, SWEEPS, ResultsPaths, not_launched_files
from kvray.store.plausible import check_plausible
from kvray.store.schema import SchemaError, conform, encode, from_table, to_table

logger = logging.getLogger("kvray.store")

T = TypeVar("T", Run, TrialRecord)

_NEVER = dt.datetime.max.replace(tzinfo=dt.UTC)
_READ_ATTEMPTS = 5
"""A reader that meets a compaction finds listed files gone and lists again; only one compaction ends a sweep."""


@dataclass(frozen=True)
class _File(Generic[T]):
    """A file that was read: its rows as Arrow has them, unknown columns included, and the same rows as objects."""

    path: Path
    table: pa.Table
    items: list[T]


class ResultsStore:
    """Records and manifests under `root`: a local path, or a `pyarrow.fs` URI (`s3://…`, `gs://…`).

    Constructing it touches nothing. A trial id names one measurement process and is not used twice in a run; appending
    it again all the same replaces what was appended before.

    Every method may raise `InvalidValueError` for a run or trial id that cannot name a file or a URI of unknown kind,
    `OutputError` where something cannot be written, and `ResultsError` where something cannot be read.
    """

    def __init__(self, root: str | Path) -> None:
        self._files = ResultsFiles(root)
        self._warned: set[tuple[Path, str]] = set()

    @property
    def display_name(self) -> str:
        """The results folder for messages, without credentials."""
        return self._files.display_name

    @property
    def is_local(self) -> bool:
        """Whether its paths name files that any program on this machine can open."""
        return self._files.is_local

    def paths(self, run_id: str) -> ResultsPaths:
        """Where the files of `run_id` lie."""
        return ResultsPaths(self._files.root, run_id)

    def check_writable(self) -> None:
        """Make the folder and write a probe file, so that a sweep need not fail at its first record.

        Raises:
            OutputError: it cannot be written; the message names the folder and the reason.
        """
        self._files.check_writable()

    # Writing

    def append(self, result: TrialResult) -> None:
        """Keep one launched trial, durably, before returning. Runs go first: a trial row implies that its runs exist.

        A trial without runs gets an empty runs file, so that the `runs` table exists whatever happened.
        """
        record = result.record
        paths = self.paths(record.run_id)
        runs_file, trial_file = paths.runs_file(record.trial_id), paths.trial_file(record.trial_id)
        self._write_table(runs_file, to_table(result.runs, Run))
        self._write_table(trial_file, to_table([record], TrialRecord))

    def append_many(self, records: Sequence[TrialRecord]) -> None:
        """Keep trials of one run that were never launched, in one file, beside those it holds already."""
        run_ids = {record.run_id for record in records}
        if not run_ids:
            return
        (run_id,) = run_ids
        path, held = self._never_launched(self.paths(run_id).trials)
        distinct = {record.trial_id: record for record in (*held, *records)}
        self._write_table(path, to_table(distinct.values(), TrialRecord))

    def _never_launched(self, folder: Path) -> tuple[Path, list[TrialRecord]]:
        """The file for them and what it holds: the first of its kind that can be read or is not there yet, so that one
        which cannot be read (a newer kvray's, say) is not overwritten."""
        for path in not_launched_files(folder):
            try:
                held = self._read_file(path, TrialRecord)
            except FileNotFoundError:
                return path, []
            if held is not None:
                return path, held.items
        raise ResultsError(f"Too many unreadable files in {folder.as_posix()!r}.", hint="Move them elsewhere.")

    def write_manifest(self, manifest: SweepManifest) -> None:
        """Keep what a sweep was asked; replaces an earlier manifest of the same run."""
        self.write_text(self.paths(manifest.run_id).manifest, manifest.model_dump_json(indent=2) + "\n")

    def write_text(self, path: Path, text: str) -> None:
        """Put `text` (UTF-8) at one of `paths(run_id)`, whole or not at all."""
        self._files.write(path, text.encode())

    def compact(self, run_id: str) -> None:
        """Merge the run's small files into one per table.

        The merged file is whole before the small ones go; killed in between, `read` drops the duplicates and the next
        `compact` cleans up. Files that cannot be read here are left as they are.
        """
        paths = self.paths(run_id)
        self._compact(paths.runs, Run)
        self._compact(paths.trials, TrialRecord)

    def _compact(self, folder: Path, kind: type[T]) -> None:
        self._files.delete_leftovers(folder)
        files = self._read_folder(folder, kind)
        small = [file.path for file in files if file.path.name != PART]
        unreadable_part = len(small) == len(files) and folder / PART in self._files.list(folder, PART)
        if not small or unreadable_part:
            return
        kept = [file.table.filter(pa.array(mask, pa.bool_())) for file, mask in _masked(files)]
        self._write_table(folder / PART, pa.concat_tables(kept, promote_options="permissive"))
        for path in small:
            self._files.delete(path)

    # Reading

    def run_ids(self) -> list[str]:
        """The runs that have a readable manifest, oldest first."""
        manifests = self._manifests()
        return [manifest.run_id for manifest in sorted(manifests, key=lambda m: (m.created_at, m.run_id))]

    def latest_run_id(self) -> str:
        """The newest run.

        Raises:
            ResultsError: the folder is missing or holds no sweep.
        """
        if run_ids := self.run_ids():
            return run_ids[-1]
        if self.is_local and not self._files.root.is_dir():
            raise ResultsError(
                f"There is no results folder {self.display_name!r}.", hint="Name the one that `kvray tune` wrote."
            )
        raise ResultsError(f"Results folder {self.display_name!r} holds no sweep.", hint="Run `kvray tune` first.")

    def read_manifest(self, run_id: str) -> SweepManifest:
        """What the sweep `run_id` was asked.

        Raises:
            ResultsError: there is none, or it is malformed or of a newer version.
        """
        try:
            data = self._files.read(self.paths(run_id).manifest)
        except FileNotFoundError:
            known = ", ".join(self.run_ids()[-10:])
            raise ResultsError(
                f"Results folder {self.display_name!r} holds no sweep {run_id!r}.",
                hint=f"It holds: {known}." if known else "It holds none.",
            ) from None
        return _parse_manifest(data, run_id)

    def has_manifest(self, run_id: str) -> bool:
        """Whether the sweep `run_id` has a manifest here, readable or not."""
        try:
            self._files.read(self.paths(run_id).manifest)
        except FileNotFoundError:
            return False
        return True

    def read(self, run_id: str) -> list[TrialResult]:
        """All trials of `run_id`, by start (those never launched last), then by trial id; each with its runs.

        A trial that lies there twice is returned once; of a candidate that an earlier attempt at the sweep did not
        launch and a later one did, the launched trial alone. Files that are torn, foreign or of a newer schema version
        are passed over with a warning on the logger `kvray.store`. An unknown run has no trials.
        """
        paths = self.paths(run_id)
        # In this order: the runs of every trial row that is seen are there already.
        records = without_overtaken(self._items(paths.trials, TrialRecord))
        runs = defaultdict[str, list[Run]](list)
        for run in self._items(paths.runs, Run):
            runs[run.trial_id].append(run)
        records.sort(key=lambda record: (record.started_at or _NEVER, record.trial_id))
        return [TrialResult(record=record, runs=tuple(runs[record.trial_id])) for record in records]

    def read_text(self, path: Path) -> str:
        """The text (UTF-8) at one of `paths(run_id)`.

        Raises:
            FileNotFoundError: nothing lies there.
        """
        return self._files.read(path).decode()

    def records_sha256(self, run_id: str) -> str:
        """Hash of the content of all trials and their runs: the same before and after `compact`, and after a later
        kvray has added columns (fields at their default are left out)."""
        results = self.read(run_id)
        items: list[TrialRecord | Run] = [result.record for result in results]
        items.extend(run for result in results for run in result.runs)
        lines = sorted(f"{type(item).__name__} {_canonical(item)}" for item in items)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _items(self, folder: Path, kind: type[T]) -> list[T]:
        files = self._read_folder(folder, kind)
        return [item for file, mask in _masked(files) for item in compress(file.items, mask)]

    def _read_folder(self, folder: Path, kind: type[T]) -> list[_File[T]]:
        """The files of `folder` that can be read: of single trials first, compacted last, so that of duplicates the
        first is the newest."""
        for _ in range(_READ_ATTEMPTS):
            paths = sorted(self._files.list(folder, ".parquet"), key=_newest_first)
            try:
                files = [self._read_file(path, kind) for path in paths]
            except FileNotFoundError:
                continue
            return [file for file in files if file is not None]
        raise ResultsError(f"The files in {folder.as_posix()!r} change while they are read.", hint="Try again.")

    def _read_file(self, path: Path, kind: type[T]) -> _File[T] | None:
        try:
            data = self._files.read(path)
        except ResultsError as error:
            if not self.is_local:  # what a service does not give now it may give later
                raise
            self._warn_of(path, error.message)
            return None
        try:
            file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
            _check_footer(file)
            table = conform(file.read(), kind)
            items = from_table(table, kind)
            for item in items:
                check_plausible(item)
            return _File(path, table, items)
        except (ValueError, OverflowError, pa.ArrowException, OSError) as error:  # `SchemaError` is a `ValueError`
            self._warn_of(path, f"{reason(error)}.")
            return None

    def _warn_of(self, path: Path, why: str) -> None:
        """Once: a sweep's records are read several times."""
        if (path, why) not in self._warned:
            self._warned.add((path, why))
            logger.warning("Skipped %s: %s", path.as_posix(), why)

    def _manifests(self) -> list[SweepManifest]:
        manifests = []
        for path in self._files.list(self._files.root / SWEEPS, ".json"):
            try:
                manifests.append(_parse_manifest(self._files.read(path), path.stem))
            except FileNotFoundError:
                continue
            except ResultsError as error:
                self._warn_of(path, error.message)
        return manifests

    def _write_table(self, path: Path, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, write_page_checksum=True)
        self._files.write(path, sink.getvalue().to_pybytes())


def _check_footer(file: pq.ParquetFile) -> None:
    """Pages have checksums and the footer has none: a bit flipped in a column's name would lose its values silently.

    Not asked of the column chunks, which name their columns too: for some damages pyarrow 26 then aborts the process.

    Raises:
        SchemaError: the columns are not those of the Arrow schema that pyarrow leaves beside them.
    """
    encoded = (file.metadata.metadata or {}).get(b"ARROW:schema")
    if encoded is None:
        return
    written = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(encoded))).names
    if written != file.schema_arrow.names:
        wrong = sorted(set(written) ^ set(file.schema_arrow.names))
        raise SchemaError(f"its footer is damaged: columns {', '.join(wrong[:4])}")


def _newest_first(path: Path) -> tuple[bool, bool, str]:
    return (path.name == PART, path.name.startswith(NOT_LAUNCHED), path.name)


def without_overtaken(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """All but those of trials never launched whose candidate was launched after all, under the same fingerprint."""
    launched = {(record.fingerprint, record.candidate_id) for record in records if record.status.was_launched}
    return [
        record
        for record in records
        if record.status.was_launched or (record.fingerprint, record.candidate_id) not in launched
    ]


def _masked(files: Sequence[_File[T]]) -> Iterator[tuple[_File[T], list[bool]]]:
    """Each file with a mask over its rows: false where an earlier file holds that trial already."""
    seen: set[str] = set()
    for file in files:
        yield file, [item.trial_id not in seen for item in file.items]
        seen.update(item.trial_id for item in file.items)


def _canonical(item: TrialRecord | Run) -> str:
    values = encode(item)
    changed = {
        f.name: values[f.name] for f in fields(item) if f.default is MISSING or getattr(item, f.name) != f.default
    }
    return json.dumps(changed, sort_keys=True, default=str)


def _parse_manifest(data: bytes, run_id: str) -> SweepManifest:
    try:
        version = json.loads(data).get("manifest_version", MANIFEST_VERSION)
    except (ValueError, AttributeError, RecursionError) as error:
        raise ResultsError(f"The manifest of sweep {run_id!r} is not a JSON object: {error}.") from error
    if not isinstance(version, int) or version > MANIFEST_VERSION:
        raise ResultsError(
            f"The manifest of sweep {run_id!r} has version {version}, this kvray reads up to {MANIFEST_VERSION}.",
            hint="Use a newer kvray.",
        )
    try:
        manifest = SweepManifest.model_validate_json(data)
    except ValidationError as error:
        raise ResultsError(f"The manifest of sweep {run_id!r} is not valid: {describe_problems(error)}.") from error
    if manifest.run_id != run_id:
        raise ResultsError(f"The manifest of sweep {run_id!r} is that of sweep {manifest.run_id!r}.")
    return manifest
