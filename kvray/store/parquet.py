"""`ResultsStore`: everything that is written to and read from a results folder.

One sweep has one writer. Readers may come at any time, from any process: what they see is whole.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow as pa

from kvray.cell_figures import TrialBlock
from kvray.errors import OutputError, ResultsError
from kvray.record import Run, TrialRecord, TrialResult
from kvray.store.encoding import few_rows, many_rows
from kvray.store.files import ResultsFiles, reason
from kvray.store.manifest import SweepManifest
from kvray.store.manifest_file import ManifestKind
from kvray.store.paths import BESIDE, PART, SWEEPS, ResultsPaths, not_launched_files, part_file, part_number
from kvray.store.ranking_table import RankingRow, ranking_table
from kvray.store.schema import encode, to_table
from kvray.store.stored_runs import StoredRuns
from kvray.store.tables import (
    UNREADABLE,
    ForeignSweepError,
    RawFile,
    RecordsFile,
    checked,
    checked_together,
    in_order,
    read_raw,
)

logger = logging.getLogger("kvray.store")

T = TypeVar("T", Run, TrialRecord)
SWEEP_MANIFEST = ManifestKind(what="sweep", model=SweepManifest, id_field="run_id", version_field="manifest_version")

_NEVER = dt.datetime.max.replace(tzinfo=dt.UTC)
_FILES_AT_ONCE = 512
_READ_ATTEMPTS = 5
"""A reader that meets a merge finds listed files gone and lists again. Merges of a running sweep are seconds apart."""


class TrialFiles(NamedTuple):
    """Where `ResultsStore.append` has put a trial."""

    runs: Path
    trial: Path


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
        shown_root = "" if self.is_local else self.display_name
        return ResultsPaths(self._files.root, run_id, shown_root=shown_root)

    @property
    def files(self) -> ResultsFiles:
        """The files that it is made of."""
        return self._files

    def check_writable(self) -> None:
        """Make the folder and write a probe file, so that a sweep need not fail at its first record.

        Raises:
            OutputError: it cannot be written; the message names the folder and the reason.
        """
        self._files.check_writable()

    # Writing

    def append(self, result: TrialResult) -> TrialFiles:
        """Keep one launched trial, durably, before returning. Runs go first: a trial row implies that its runs exist.

        A trial without runs gets an empty runs file, so that the `runs` table exists whatever happened.
        """
        run_id, trial_id = result.record.run_id, result.record.trial_id
        paths = self.paths(run_id)
        runs_file, trial_file = paths.runs_file(trial_id), paths.trial_file(trial_id)
        files = TrialFiles(self._place_for(runs_file, Run, run_id), self._place_for(trial_file, TrialRecord, run_id))
        self._files.write(files.runs, few_rows(to_table(result.runs, Run, run_id=run_id)))
        self._files.write(files.trial, few_rows(to_table([result.record], TrialRecord, run_id=run_id)))
        return files

    def _place_for(self, path: Path, kind: type[T], run_id: str) -> Path:
        """`path`, or a name beside it where a file of another sweep lies there, which must not be overwritten."""
        beside = (path.with_name(f"{path.stem}{BESIDE}{number}.parquet") for number in range(1, 100))
        for name in itertools.chain((path,), beside):
            if not self._is_of_another_sweep(name, kind, run_id):
                return name
        where = self._files.shown(path.parent)
        raise OutputError(f"Too many files of other sweeps in {where!r}.", hint="Move them elsewhere.")

    def append_many(self, records: Sequence[TrialRecord]) -> None:
        """Keep trials of one run that were never launched, in one file, beside those it holds already."""
        run_ids = {record.run_id for record in records}
        if not run_ids:
            return
        (run_id,) = run_ids
        path, held = self._never_launched(self.paths(run_id))
        distinct = {record.trial_id: record for record in (*held, *records)}
        self._files.write(path, many_rows(to_table(distinct.values(), TrialRecord)))

    def _never_launched(self, paths: ResultsPaths) -> tuple[Path, list[TrialRecord]]:
        """The file for them and what it holds: the first of its kind that can be read or is not there yet, so that one
        which cannot be read (a newer kvray's, say) is not overwritten."""
        for path in not_launched_files(paths.trials):
            try:
                held = self._read_file(path, TrialRecord, paths.run_id)
            except FileNotFoundError:
                return path, []
            if held is not None:
                return path, list(held.items)
        where = self._files.shown(paths.trials)
        raise ResultsError(f"Too many unreadable files in {where!r}.", hint="Move them elsewhere.")

    def write_manifest(self, manifest: SweepManifest) -> None:
        """Keep what a sweep was asked; replaces an earlier manifest of the same run."""
        self.write_text(self.paths(manifest.run_id).manifest, manifest.model_dump_json(indent=2) + "\n")

    def write_text(self, path: Path, text: str) -> None:
        """Put `text` (UTF-8) at one of `paths(run_id)`, whole or not at all."""
        self._files.write(path, text.encode())

    def write_ranking(self, run_id: str, rows: Sequence[RankingRow]) -> None:
        """Put the ranking of the sweep `run_id` beside its reports, in place of an earlier one."""
        self._files.write(self.paths(run_id).ranking, many_rows(ranking_table(rows)))

    def delete(self, path: Path) -> None:
        """Remove what lies at one of `paths(run_id)`; nothing happens where nothing does."""
        self._files.delete(path)

    def merge(self, run_id: str, appended: Mapping[TrialFiles, TrialResult]) -> None:
        """Put trials that `append` has kept into one file per table, in place of their own files.

        None of them may lie in an earlier merged file. Killed in between, this leaves what a killed `compact` leaves.
        """
        paths = self.paths(run_id)
        number = 1 + max((self._last_part(folder) for folder in (paths.runs, paths.trials)), default=0)
        runs = to_table([run for result in appended.values() for run in result.runs], Run, run_id=run_id)
        records = to_table([result.record for result in appended.values()], TrialRecord, run_id=run_id)
        self._files.write(part_file(paths.runs, number), many_rows(runs))
        self._files.write(part_file(paths.trials, number), many_rows(records))
        self._files.each(self._files.delete, [path for files in appended for path in files])

    def _last_part(self, folder: Path) -> int:
        return max((part_number(path) or 0 for path in self._files.list(folder, ".parquet")), default=0)

    def has_runs(self, run_id: str) -> bool:
        """Whether any file of runs of `run_id` lies here, readable or not."""
        return bool(self._files.list(self.paths(run_id).runs, ".parquet"))

    def compact(self, run_id: str) -> None:
        """Merge all the run's files into one per table.

        The merged file is whole before the others go; killed in between, `read` drops the duplicates and the next
        `compact` cleans up. Files that cannot be read here, that are of another sweep, or that somebody else named are
        left as they are.
        """
        paths = self.paths(run_id)
        self._compact(paths.runs, Run, run_id)
        self._compact(paths.trials, TrialRecord, run_id)

    def _compact(self, folder: Path, kind: type[T], run_id: str) -> None:
        """Earlier merged files go first, oldest first: what counts before others must not go before them."""
        self._files.delete_leftovers(folder)
        files = [file for file in self._read_folder(folder, kind, run_id) if file.is_own]
        others = [file.path for file in files if file.path.name != PART]
        unreadable_part = len(others) == len(files) and folder / PART in self._files.list(folder, PART)
        if not others or unreadable_part:
            return
        merged = pa.concat_tables([file.counted_table for file in files], promote_options="permissive")
        self._files.write(folder / PART, many_rows(merged))
        parts = {number: path for path in others if (number := part_number(path)) is not None}
        for number in sorted(parts):
            self._files.delete(parts[number])
        self._files.each(self._files.delete, [path for path in others if path not in parts.values()])

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
            raise SWEEP_MANIFEST.missing(run_id, self.display_name, self.run_ids()) from None
        return SWEEP_MANIFEST.parse(data, run_id)

    def has_manifest(self, run_id: str) -> bool:
        """Whether the sweep `run_id` has a manifest here, readable or not."""
        try:
            self._files.read(self.paths(run_id).manifest)
        except FileNotFoundError:
            return False
        return True

    def read(self, run_id: str) -> list[TrialResult]:
        """All trials of `run_id`, by start (those never launched last), then by trial id; each with its runs.

        A trial that lies there twice is returned once, as the file has it that kvray wrote last; of a candidate that
        an earlier attempt at the sweep did not launch and a later one did, the launched trial alone. Files that are
        torn, foreign, of another sweep or of a newer schema version are passed over with a warning on the logger
        `kvray.store`. An unknown run has no trials.
        """
        paths = self.paths(run_id)
        # In this order: the runs of every trial row that is seen are there already.
        files = self._read_folder(paths.trials, TrialRecord, run_id)
        records = without_overtaken([item for file in files for item in file.counted_items])
        runs: dict[str, StoredRuns] = {}
        for file in self._read_folder(paths.runs, Run, run_id):
            runs.update(file.counted_runs)
        blocks = {id(one.block): one.block for one in runs.values()}
        self._files.each(TrialBlock.compute, blocks.values(), worth_a_thread=1)
        records.sort(key=lambda record: (record.started_at or _NEVER, record.trial_id))
        return [TrialResult(record=record, runs=runs.get(record.trial_id, ())) for record in records]

    def read_text(self, path: Path) -> str:
        """The text (UTF-8) at one of `paths(run_id)`.

        Raises:
            FileNotFoundError: nothing lies there.
        """
        return self._files.read(path).decode()

    def _read_folder(self, folder: Path, kind: type[T], run_id: str) -> list[RecordsFile[T]]:
        """The files of `folder` that can be read, those first that have the say."""
        for _ in range(_READ_ATTEMPTS):
            paths = self._files.list(folder, ".parquet")
            try:
                files = self._read_files(paths, kind, run_id)
            except FileNotFoundError:
                continue
            ordered = in_order(files)
            for file in ordered:
                self._warn_of_copies(file)
            return ordered
        raise ResultsError(f"The files in {self._files.shown(folder)!r} change while they are read.", hint="Try again.")

    def _read_files(self, paths: Sequence[Path], kind: type[T], run_id: str) -> list[RecordsFile[T]]:
        """Many at a time, because every look at a table costs the same for many rows. A merged file of runs has many
        rows already, so these are read side by side."""

        def read(some: Sequence[Path]) -> list[RecordsFile[T]]:
            return self._read_together(some, kind, run_id)

        merged = [path for path in paths if part_number(path) is not None]
        single = [path for path in paths if part_number(path) is None]
        by_side = [[path] for path in merged] if kind is Run else _few_at_once(merged)
        read_by_side = self._files.each(read, by_side, worth_a_thread=1)
        return list(itertools.chain(*read_by_side, *map(read, _few_at_once(single))))

    def _read_together(self, paths: Sequence[Path], kind: type[T], run_id: str) -> list[RecordsFile[T]]:
        raw = [file for file in self._files.each(self._read_raw, paths) if file is not None]
        together = checked_together(raw, kind, run_id) if raw else []
        one_by_one = (self._checked(file, kind, run_id) for file in raw) if together is None else together
        return [file for file in one_by_one if file is not None]

    def _read_file(self, path: Path, kind: type[T], run_id: str) -> RecordsFile[T] | None:
        raw = self._read_raw(path)
        return None if raw is None else self._checked(raw, kind, run_id)

    def _read_raw(self, path: Path) -> RawFile | None:
        try:
            with self._files.open(path) as source:
                return read_raw(source, path)
        except FileNotFoundError:
            raise
        except ResultsError as error:
            if not self.is_local:  # what a service does not give now it may give later
                raise
            self._warn_of(path, error.message)
        except UNREADABLE as error:
            self._warn_of(path, f"{reason(error)}.")
        return None

    def _checked(self, file: RawFile, kind: type[T], run_id: str) -> RecordsFile[T] | None:
        try:
            return checked(file, kind, run_id)
        except UNREADABLE as error:
            self._warn_of(file.path, f"{reason(error)}.")
        return None

    def _is_of_another_sweep(self, path: Path, kind: type[T], run_id: str) -> bool:
        try:
            with self._files.open(path) as source:
                checked(read_raw(source, path), kind, run_id)
        except ForeignSweepError:
            return True
        except (ResultsError, *UNREADABLE):
            return False
        return False

    def _warn_of_copies(self, file: RecordsFile[T]) -> None:
        copied = file.copied_trials
        if copied and not file.is_own:
            told = f"{copied} of its trials lie in the sweep's own files too, which are used."
            self._warn_of(file.path, told)

    def _warn_of(self, path: Path, why: str) -> None:
        """Once: a sweep's records are read several times."""
        if (path, why) not in self._warned:
            self._warned.add((path, why))
            logger.warning("Skipped %s: %s", self._files.shown(path), why)

    def _manifests(self) -> list[SweepManifest]:
        paths = self._files.list(self._files.root / SWEEPS, ".json")
        return [one for one in self._files.each(self._manifest_at, paths) if one is not None]

    def _manifest_at(self, path: Path) -> SweepManifest | None:
        try:
            return SWEEP_MANIFEST.parse(self._files.read(path), path.stem)
        except FileNotFoundError:
            return None
        except ResultsError as error:
            self._warn_of(path, error.message)
            return None


def _few_at_once(paths: Sequence[Path]) -> list[Sequence[Path]]:
    return [paths[first : first + _FILES_AT_ONCE] for first in range(0, len(paths), _FILES_AT_ONCE)]


def records_sha256(results: Iterable[TrialResult]) -> str:
    """Hash of the content of all trials of a sweep and their runs: the same before and after `compact`, and after a
    later kvray has added columns (fields at their default are left out)."""
    items: list[TrialRecord | Run] = []
    for result in results:
        items += [result.record, *result.runs]
    lines = sorted(f"{type(item).__name__} {_canonical(item)}" for item in items)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def without_overtaken(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """All but those of trials never launched whose candidate was launched after all, under the same fingerprint and on
    the same type of GPU."""

    launched = [record for record in records if record.status.was_launched]
    # Older records do not say on which type.
    overtaken = {(one.fingerprint, kind, one.candidate_id) for one in launched for kind in (one.gpu_type, None)}
    return [
        one
        for one in records
        if one.status.was_launched or (one.fingerprint, one.gpu_type, one.candidate_id) not in overtaken
    ]


def _canonical(item: TrialRecord | Run) -> str:
    values = encode(item)
    changed = {
        f.name: values[f.name] for f in fields(item) if f.default is MISSING or getattr(item, f.name) != f.default
    }
    return json.dumps(changed, sort_keys=True, default=str)
