"""The runs of trials as they lie in a table: read as columns, made objects when somebody asks for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import override

from kvray.cell_figures import TrialBlock, TrialCells
from kvray.record import Run
from kvray.run_columns import RunColumns
from kvray.store.plausible import numbers
from kvray.store.schema import from_table


class StoredRuns(Sequence[Run]):
    """Like a tuple of the runs in `table` that begin at row `start`, and equal to one.

    Args:
        block: runs of many trials, of which number `place` is this one.
    """

    def __init__(self, table: pa.Table, start: int, columns: RunColumns, block: TrialBlock, place: int) -> None:
        self._table = table
        self._start = start
        self.columns = columns
        self._block = block
        self._place = place

    @property
    def cells(self) -> TrialCells:
        """What the full-length cells come to."""
        return self._block.cells(self._place)

    @cached_property
    def _objects(self) -> tuple[Run, ...]:
        return tuple(from_table(self._table.slice(self._start, len(self.columns)), Run))

    @overload
    def __getitem__(self, place: int) -> Run: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Run, ...]: ...

    @override
    def __getitem__(self, place: int | slice) -> Run | tuple[Run, ...]:
        return self._objects[place]

    @override
    def __len__(self) -> int:
        return len(self.columns)

    @override
    def __iter__(self) -> Iterator[Run]:
        return iter(self._objects)

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._objects == tuple(other)

    @override
    def __hash__(self) -> int:
        return hash(self._objects)

    @override
    def __repr__(self) -> str:
        return repr(self._objects)


def runs_by_trial(table: pa.Table, columns: RunColumns | None = None) -> dict[str, StoredRuns]:
    """The runs in `table`, which were checked, by trial; each trial's in the order in which they lie there.

    Args:
        columns: of the table, where the caller has them.
    """
    codes, names = _trials(table)
    if not (np.diff(codes) >= 0).all():  # the rows of a trial do not lie together
        order = np.argsort(codes, kind="stable")
        table, codes, columns = table.take(pa.array(order)), codes[order], None
    columns = columns or columns_of(table)
    starts = np.searchsorted(codes, np.arange(len(names) + 1)).tolist()
    blocks = [TrialBlock(columns, starts[at : at + _BLOCK + 1]) for at in range(0, len(names), _BLOCK)]
    return {
        name: stored(table, start, columns.between(start, stop), blocks[number // _BLOCK], number % _BLOCK)
        for number, (name, start, stop) in enumerate(zip(names, starts, starts[1:], strict=False))
    }


_BLOCK = 256
"""Trials whose cells are computed together: enough for numpy, and few enough for their gaps to fit a copy."""


def stored(table: pa.Table, start: int, columns: RunColumns, block: TrialBlock, place: int) -> StoredRuns:
    """The runs in `table` from row `start` on, which are one trial's, number `place` of `block`; with why they were
    disturbed, where that is recorded."""
    noted = table.column("disturbance")
    if noted.null_count < len(noted):
        reasons = noted.slice(start, len(columns)).drop_null().to_pylist()
        columns = replace(columns, reasons=tuple(reasons))
    return StoredRuns(table, start, columns, block, place)


def _trials(table: pa.Table) -> tuple[np.ndarray, list[str]]:
    """For each row the number of its trial, by first appearance; and the ids."""
    encoded = pc.dictionary_encode(_whole(table, "trial_id"))
    return numbers(encoded.indices), encoded.dictionary.to_pylist()


def columns_of(table: pa.Table) -> RunColumns:
    """What analysis reads of the runs in `table`."""
    gaps = _whole(table, "itl_ms")
    offsets, disturbed = numbers(gaps.offsets), pc.fill_null(_whole(table, "disturbed"), False)
    return RunColumns(
        **{name: numbers(_whole(table, name)) for name in _INTEGERS},
        **{name: numbers(pc.fill_null(_whole(table, name), math.nan)) for name in _FLOATS},
        disturbed=numbers(disturbed.cast(pa.uint8())).astype(np.bool_),
        gaps_ms=numbers(gaps.values),
        gap_starts=offsets[:-1],
        gap_stops=offsets[1:],
    )


_INTEGERS = ("context_tokens", "output_tokens", "batch_size", "rung")
_FLOATS = ("ttft_ms", "decode_tok_s", "peak_mib", "energy_j")


def _whole(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
