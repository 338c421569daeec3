"""Reads and checks one Parquet file of records, and decides which file counts where several hold the same trial.

`ResultsStore` names the files and decides what becomes of them.
"""

from __future__ import annotations

import base64
import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from kvray.record import Run, TrialRecord
from kvray.store.paths import BESIDE, NOT_LAUNCHED, PART
from kvray.store.plausible import check_plausible
from kvray.store.schema import RUN_KEY, SchemaError, conform, from_table

T = TypeVar("T", Run, TrialRecord)

UNREADABLE = (ValueError, OverflowError, pa.ArrowException, OSError)
"""What `read_records` raises for damaged files, beside its own errors."""

_MAGIC = b"PAR1"
_TAIL = 8
"""Bytes at the end of a Parquet file: the length of its footer and the magic."""
_LARGEST_FOOTER = 64 * 2**20
"""Bytes. kvray's have tens of kilobytes; of a damaged length nothing is allocated."""
_NEVER_LAUNCHED = re.compile(rf"{NOT_LAUNCHED}(-\d+)?")


class _Origin(enum.IntEnum):
    """What a file's name says of its making. Where several files hold the same trial, the lowest number counts."""

    ONE_TRIAL = 0
    NOT_LAUNCHED = 1
    COMPACTED = 2
    FOREIGN = 3
    """Somebody else named it: it is read, and never merged or deleted."""


class ForeignSweepError(SchemaError):
    """The file is whole, but belongs to another sweep than the folder that it lies in."""


@dataclass(frozen=True)
class RecordsFile(Generic[T]):
    """A file that was read.

    Attributes:
        table: its rows as Arrow has them, unknown columns included.
        items: the same rows as objects.
        is_of_the_sweep: whether the file names its sweep; older files do not, and without rows they replace nothing.
        counted: for each row, whether it counts: false where a file that comes before this one holds the same trial.
    """

    path: Path
    table: pa.Table
    items: list[T]
    is_of_the_sweep: bool
    counted: tuple[bool, ...] = ()

    @property
    def is_own(self) -> bool:
        """Whether kvray named it. Any other file is read, and never merged or deleted."""
        return self._origin is not _Origin.FOREIGN

    @property
    def counted_items(self) -> list[T]:
        """The rows that count."""
        return list(compress(self.items, self.counted))

    @property
    def counted_table(self) -> pa.Table:
        """The rows that count, as Arrow has them."""
        return self.table.filter(pa.array(self.counted, pa.bool_()))

    @property
    def trial_ids(self) -> frozenset[str]:
        """The trials that it holds; a trial without runs has a file without rows."""
        if not self.items and self.is_of_the_sweep:
            return frozenset({_trial_id_of(self.path)})
        return frozenset(item.trial_id for item in self.items)

    @property
    def _origin(self) -> _Origin:
        if self.path.name == PART:
            return _Origin.COMPACTED
        if _NEVER_LAUNCHED.fullmatch(self.path.stem):
            return _Origin.NOT_LAUNCHED
        return _Origin.ONE_TRIAL if self.trial_ids <= {_trial_id_of(self.path)} else _Origin.FOREIGN

    @property
    def sort_key(self) -> tuple[int, str]:
        """Puts first the files that count before others."""
        return self._origin, self.path.name


def read_records(source: pa.NativeFile, path: Path, kind: type[T], run_id: str) -> RecordsFile[T]:
    """The records in `source`, which lies at `path` in the folder of `run_id`. Only the part that its footer describes
    is read, however large the file is.

    Raises:
        ForeignSweepError: they belong to another sweep.
        SchemaError: newer, not kvray's, or not plausible.
        ValueError, OverflowError, ArrowException, OSError: damaged, see `UNREADABLE`.
    """
    _check_ends(source)
    file = pq.ParquetFile(source, page_checksum_verification=True)
    _check_footer(file)
    table = conform(file.read(), kind)
    items = from_table(table, kind)
    for item in items:
        check_plausible(item)
    told = (file.schema_arrow.metadata or {}).get(RUN_KEY, b"").decode()
    if others := sorted(({told or run_id} | {item.run_id for item in items}) - {run_id}):
        raise ForeignSweepError(f"it holds records of another sweep, {others[0][:80]!r}")
    return RecordsFile(path, table, items, is_of_the_sweep=bool(told))


def in_order(files: Iterable[RecordsFile[T]]) -> list[RecordsFile[T]]:
    """The files in the order in which they count, with the rows that count marked: each trial counts in one file."""
    ordered, seen = [], set[str]()
    for file in sorted(files, key=lambda one: one.sort_key):
        ordered.append(replace(file, counted=_counted(file.items, seen)))
        seen |= file.trial_ids
    return ordered


def _counted(items: Iterable[T], seen: Iterable[str]) -> tuple[bool, ...]:
    """Which rows are the first of their trial. Among the runs, all rows of a trial in one file count."""
    before, counted = set(seen), []
    for item in items:
        counted.append(item.trial_id not in before)
        if isinstance(item, TrialRecord):
            before.add(item.trial_id)
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
    written = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(encoded))).names
    if written != file.schema_arrow.names:
        wrong = sorted(set(written) ^ set(file.schema_arrow.names))
        raise SchemaError(f"its footer is damaged: columns {', '.join(wrong[:4])}")
