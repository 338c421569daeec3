"""The runs of trials as they lie in a table: read as columns, made objects when somebody asks for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import override

from kvray.cell_figures import TrialBlock, TrialCells
from kvray.record import Run
from kvray.run_columns import Floats, RunColumns
from kvray.store.plausible import numbers
from kvray.store.schema import from_table


class StoredRuns(Sequence[Run]):
    """Like a tuple of the runs of one trial, which lie together in `table`, and equal to one.

    Args:
        block: the runs in `table` of many trials, of which number `place` is this one.
    """

    def __init__(self, table: pa.Table, block: TrialBlock, place: int) -> None:
        self._table = table
        self._block = block
        self._place = place

    @property
    def columns(self) -> RunColumns:
        """What analysis reads of them, with why they were disturbed, where that is recorded. Made anew every time: ten
        thousand trials' would take as much memory as what they show."""
        begin, end = self._block.span(self._place)
        columns = self._block.columns.between(begin, end)
        noted = self._table.column("disturbance")
        if noted.null_count == len(noted):
            return columns
        return replace(columns, reasons=tuple(noted.slice(begin, end - begin).drop_null().to_pylist()))

    @property
    def has_disturbed(self) -> bool:
        """Whether one of them was disturbed."""
        return self._block.has_disturbed(self._place)

    @property
    def cells(self) -> TrialCells:
        """What the full-length cells come to."""
        return self._block.cells(self._place)

    @cached_property
    def _objects(self) -> tuple[Run, ...]:
        return tuple(from_table(self._table.slice(self._block.span(self._place)[0], len(self)), Run))

    @overload
    def __getitem__(self, place: int) -> Run: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Run, ...]: ...

    @override
    def __getitem__(self, place: int | slice) -> Run | tuple[Run, ...]:
        return self._objects[place]

    @override
    def __len__(self) -> int:
        begin, end = self._block.span(self._place)
        return end - begin

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


def runs_by_trial(table: pa.Table) -> dict[str, StoredRuns]:
    """The runs in `table`, which were checked, by trial; each trial's in the order in which they lie there."""
    codes, names = _trials(table)
    if not (np.diff(codes) >= 0).all():  # the rows of a trial do not lie together
        order = np.argsort(codes, kind="stable")
        table, codes = table.take(pa.array(order)), codes[order]
    columns, starts = columns_of(table), np.searchsorted(codes, np.arange(len(names) + 1)).tolist()
    blocks = [TrialBlock(columns, starts[at : at + _BLOCK + 1]) for at in range(0, len(names), _BLOCK)]
    return {name: StoredRuns(table, blocks[number // _BLOCK], number % _BLOCK) for number, name in enumerate(names)}


_BLOCK = 256
"""Trials whose cells are computed together: enough for numpy, and few enough for their gaps to fit a copy."""


def _trials(table: pa.Table) -> tuple[np.ndarray, list[str]]:
    """For each row the number of its trial, by first appearance; and the ids."""
    encoded = pc.dictionary_encode(_whole(table, "trial_id"))
    return numbers(encoded.indices), encoded.dictionary.to_pylist()


def columns_of(table: pa.Table) -> RunColumns:
    """What analysis reads of the runs in `table`."""
    gaps = _whole(table, "itl_ms")
    offsets, disturbed = numbers(gaps.offsets), _whole(table, "disturbed")
    plain: dict[str, Any] = {name: numbers(_whole(table, name)) for name in _INTEGERS}
    plain |= {name: _floats(_whole(table, name)) for name in _FLOATS}
    return RunColumns(
        **plain,
        disturbed=_flags(disturbed) & ~_flags(disturbed.is_null()),
        gaps_ms=numbers(gaps.values),
        gap_starts=offsets[:-1],
        gap_stops=offsets[1:],
    )


_INTEGERS = ("context_tokens", "output_tokens", "batch_size", "rung")
_FLOATS = ("ttft_ms", "decode_tok_s", "peak_mib", "energy_j")


def _floats(array: pa.Array) -> Floats:
    """NaN where it is null. Arrow's own `fill_null` would import pandas."""
    if not array.null_count:
        return numbers(array)
    return np.where(_flags(array.is_null()), math.nan, numbers(array))


def _flags(array: pa.Array) -> npt.NDArray[np.bool_]:
    """Anything where it is null."""
    return numbers(array.cast(pa.uint8())).astype(np.bool_)


def _whole(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
