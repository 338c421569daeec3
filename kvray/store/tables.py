"""Reads and checks one Parquet file of records, and decides which file counts where several hold the same trial.

`ResultsStore` names the files and decides what becomes of them.
"""

from __future__ import annotations

import base64
import enum
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kvray.cell_figures import TrialBlock
from kvray.record import Run, TrialRecord
from kvray.store.paths import BESIDE, NOT_LAUNCHED, PART, part_number
from kvray.store.plausible import are_plain_runs, check_candidate, check_plausible, have_plain_figures
from kvray.store.schema import RUN_KEY, VERSION_KEY, SchemaError, conform, from_table, rows_of
from kvray.store.stored_runs import StoredRuns, columns_of, runs_by_trial

T = TypeVar("T", Run, TrialRecord)

UNREADABLE = (ValueError, OverflowError, pa.ArrowException, OSError)
"""What reading a damaged file raises."""

_MAGIC = b"PAR1"
_TAIL = 8
"""Bytes at the end of a Parquet file: the length of its footer and the magic."""
_LARGEST_FOOTER = 64 * 2**20
"""Bytes. kvray's have tens of kilobytes; of a damaged length nothing is allocated."""
_MANY_ROWS = 100_000
_NEVER_LAUNCHED = re.compile(rf"{NOT_LAUNCHED}(-\d+)?")


class _Origin(enum.IntEnum):
    """What a file's name says of its making. Where several files hold the same trial, the lowest number counts; of
    several merged ones, the latest."""

    ONE_TRIAL = 0
    NOT_LAUNCHED = 1
    MERGED = 2
    FOREIGN = 3
    """Somebody else named it: it is read, and never merged or deleted."""


class ForeignSweepError(SchemaError):
    """The file is whole, but belongs to another sweep than the folder that it lies in."""


@dataclass(frozen=True)
class RawFile:
    """A whole Parquet file, of which nobody has looked yet what its rows say.

    Attributes:
        told: the sweep that it names; empty in older files.
    """

    path: Path
    table: pa.Table
    told: str


@dataclass(frozen=True)
class RecordsFile(Generic[T]):
    """A file that was read and checked.

    Attributes:
        checked: the table in which its rows were checked, perhaps with those of other files.
        start, rows: where in it they lie.
        is_of_the_sweep: whether the file names its sweep; older files do not, and without rows they replace nothing.
        row_ids: the trials of its rows, each once.
        counted: for each row, whether it counts: false where a file that comes before this one holds the same trial.
            `None` where all do.
        made: its rows as objects, where the check has made them.
        block: its runs as arrays, where the check has made them; they are number `place` of these.
    """

    path: Path
    checked: pa.Table
    start: int
    rows: int
    kind: type[T]
    is_of_the_sweep: bool
    row_ids: frozenset[str]
    counted: tuple[bool, ...] | None = None
    made: Sequence[T] | None = None
    block: TrialBlock | None = None
    place: int = 0

    @property
    def is_own(self) -> bool:
        """Whether kvray named it. Any other file is read, and never merged or deleted."""
        return self._origin is not _Origin.FOREIGN

    @property
    def table(self) -> pa.Table:
        """Its rows as Arrow has them, unknown columns included."""
        return self.checked.slice(self.start, self.rows)

    @property
    def items(self) -> Sequence[T]:
        """Its rows as objects."""
        return from_table(self.table, self.kind) if self.made is None else self.made

    @property
    def counted_items(self) -> Sequence[T]:
        """The rows that count."""
        return self.items if self.counted is None else list(itertools.compress(self.items, self.counted))

    @property
    def counted_table(self) -> pa.Table:
        """The rows that count, as Arrow has them."""
        return self.table if self.counted is None else self.table.filter(pa.array(self.counted, pa.bool_()))

    @property
    def trial_ids(self) -> frozenset[str]:
        """The trials that it holds; a trial without runs has a file without rows."""
        if not self.row_ids and self.is_of_the_sweep:
            return frozenset({_trial_id_of(self.path)})
        return self.row_ids

    @property
    def counted_runs(self) -> dict[str, StoredRuns]:
        """The runs that count, by trial."""
        if self.counted is None and self.block is not None and len(self.row_ids) == 1:
            (trial_id,) = self.row_ids
            return {trial_id: StoredRuns(self.checked, self.block, self.place)}
        return runs_by_trial(self.counted_table)

    @property
    def copied_trials(self) -> int:
        """How many of its trials another file holds too, which counts instead."""
        if self.counted is None:
            return 0
        return len(self.row_ids) - len(set(itertools.compress(self.table.column("trial_id").to_pylist(), self.counted)))

    @property
    def _origin(self) -> _Origin:
        if self.path.name == PART or (part_number(self.path) is not None and self.is_of_the_sweep):
            return _Origin.MERGED
        if _NEVER_LAUNCHED.fullmatch(self.path.stem):
            return _Origin.NOT_LAUNCHED
        return _Origin.ONE_TRIAL if self.trial_ids <= {_trial_id_of(self.path)} else _Origin.FOREIGN

    @property
    def sort_key(self) -> tuple[int, int, str]:
        """Puts first the files that count before others."""
        origin = self._origin
        return origin, -(part_number(self.path) or 0) if origin is _Origin.MERGED else 0, self.path.name


def read_raw(source: pa.NativeFile, path: Path) -> RawFile:
    """What `source` holds, which lies at `path`. Only the part that its footer describes is read, however large the
    file is.

    Raises:
        SchemaError: it is no Parquet file, or its footer is damaged.
        ValueError, OverflowError, ArrowException, OSError: damaged, see `UNREADABLE`.
    """
    _check_ends(source)
    file = pq.ParquetFile(source, page_checksum_verification=True)
    _check_footer(file)
    told = (file.schema_arrow.metadata or {}).get(RUN_KEY, b"").decode()
    return RawFile(path, _whole_table(file, path), told)


def _whole_table(file: pq.ParquetFile, path: Path) -> pa.Table:
    """All rows. Of many a column at a time, because Arrow holds each that it reads packed and unpacked at once."""
    names = file.schema_arrow.names
    if part_number(path) is None or file.metadata.num_rows < _MANY_ROWS or len(set(names)) < len(names):
        return file.read(use_threads=part_number(path) is not None)
    columns = [file.read(columns=[name], use_threads=False).column(0) for name in names]
    return pa.table(columns, schema=file.schema_arrow)


def checked(file: RawFile, kind: type[T], run_id: str) -> RecordsFile[T]:
    """The records in a file that lies in the folder of `run_id`, looked at one by one.

    Raises:
        ForeignSweepError: they belong to another sweep.
        SchemaError: newer, not kvray's, or not plausible.
        ValueError, OverflowError, ArrowException: damaged, see `UNREADABLE`.
    """
    table = conform(file.table, kind)
    items = rows_of(table, kind)
    for item in items:
        check_plausible(item)
    if others := sorted(({file.told or run_id} | {item.run_id for item in items}) - {run_id}):
        raise ForeignSweepError(f"it holds records of another sweep, {others[0][:80]!r}")
    ids = frozenset(item.trial_id for item in items)
    made = items if kind is TrialRecord else None
    return RecordsFile(file.path, table, 0, table.num_rows, kind, bool(file.told), ids, made=made)


def checked_together(files: Sequence[RawFile], kind: type[T], run_id: str) -> list[RecordsFile[T]] | None:
    """What `checked` says of each of `files`, at the price of one; `None` where it may refuse one of them, or say
    something else of it than of the others."""
    first = files[0]
    if any(file.told not in ("", run_id) or not _is_alike(file.table.schema, first.table.schema) for file in files):
        return None
    try:
        table = conform(pa.concat_tables([file.table for file in files]), kind).combine_chunks()
        if not set(pc.unique(table.column("run_id")).to_pylist()) <= {run_id}:
            return None
        items = _made_together(table, kind)
    except UNREADABLE:
        return None
    return None if items is False else _apart(files, table, kind, items)


def in_order(files: Iterable[RecordsFile[T]]) -> list[RecordsFile[T]]:
    """The files in the order in which they count, with the rows that count marked: each trial counts in one file."""
    ordered, seen = [], set[str]()
    for file in sorted(files, key=lambda one: one.sort_key):
        ordered.append(replace(file, counted=_counted(file, seen)))
        seen |= file.trial_ids
    return ordered


def _is_alike(schema: pa.Schema, other: pa.Schema) -> bool:
    versions = [(one.metadata or {}).get(VERSION_KEY) for one in (schema, other)]
    return versions[0] == versions[1] and schema.equals(other)


def _made_together(table: pa.Table, kind: type[T]) -> Sequence[T] | Literal[False] | None:
    """The rows as objects, or `None` for runs, which are left as they are; `False` where a row may not be plausible."""
    if kind is Run:
        return None if are_plain_runs(table) else False
    items = rows_of(table, kind)
    check: Callable[[Any], None] = check_candidate if have_plain_figures(table) else check_plausible
    for item in items:
        check(item)
    return items


def _apart(files: Sequence[RawFile], table: pa.Table, kind: type[T], items: Sequence[T] | None) -> list[RecordsFile[T]]:
    found = []
    starts = [0, *itertools.accumulate(file.table.num_rows for file in files)]
    block = TrialBlock(columns_of(table), starts) if kind is Run and len(files) > 1 else None
    ids = table.column("trial_id")
    for place, file in enumerate(files):
        start, stop = starts[place], starts[place + 1]
        found.append(
            RecordsFile(
                file.path,
                table,
                start,
                stop - start,
                kind,
                bool(file.told),
                frozenset(pc.unique(ids.slice(start, stop - start)).to_pylist()),
                made=None if items is None else items[start:stop],
                block=block,
                place=place,
            )
        )
    return found


def _counted(file: RecordsFile[T], seen: set[str]) -> tuple[bool, ...] | None:
    """Which rows are the first of their trial. Among the runs, all rows of a trial in one file count."""
    is_once = file.kind is Run or len(file.row_ids) == file.rows
    if is_once and file.row_ids.isdisjoint(seen):
        return None
    before, counted = set(seen), []
    for trial_id in file.table.column("trial_id").to_pylist():
        counted.append(trial_id not in before)
        if file.kind is TrialRecord:
            before.add(trial_id)
    return tuple(counted)


def _trial_id_of(path: Path) -> str:
    return path.stem.partition(BESIDE)[0]


def _check_ends(source: pa.NativeFile) -> None:
    """
    Raises:
        SchemaError: it is no Parquet file, or its footer would be larger than any that kvray writes.
    """
    size = source.size()
    if size < len(_MAGIC) + _TAIL:
        raise SchemaError(f"it is no Parquet file: it has {size} bytes")
    head = source.read(len(_MAGIC))
    source.seek(size - _TAIL)
    tail = source.read(_TAIL)
    if head != _MAGIC or tail[-len(_MAGIC) :] != _MAGIC:
        raise SchemaError("it is no Parquet file: the magic bytes at its ends are missing")
    if int.from_bytes(tail[: -len(_MAGIC)], "little") > _LARGEST_FOOTER:
        raise SchemaError("its footer is damaged: it would be larger than 64 MiB")
    source.seek(0)


def _check_footer(file: pq.ParquetFile) -> None:
    """Compare the column names in the footer with those of the Arrow schema. Pages have checksums and the footer has
    none, so a bit flipped in a column's name would lose its values silently.

    The column chunks name their columns too, but reading those makes pyarrow 26 abort the process for some damages.

    Raises:
        SchemaError: the columns are not those of the Arrow schema that pyarrow leaves beside them.
    """
    encoded = (file.metadata.metadata or {}).get(b"ARROW:schema")
    if encoded is None:
        return
    written, found = _names_in(encoded), file.schema_arrow.names
    if written != found:
        wrong = sorted(set(written) ^ set(found))
        raise SchemaError(f"its footer is damaged: columns {', '.join(wrong[:4])}")


@lru_cache(maxsize=16)
def _names_in(encoded: bytes) -> list[str]:
    """Remembered, because the files of a sweep are alike."""
    names: list[str] = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(encoded))).names
    return names
