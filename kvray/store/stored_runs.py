"""The runs of trials as they lie in a table: read as columns, made objects when somebody asks for them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import override

from kvray.cell_figures import TrialBlock, TrialCells
from kvray.lazy import MadeLater
from kvray.record import Run
from kvray.run_columns import Floats, RunColumns
from kvray.store.plausible import numbers, whole
from kvray.store.schema import from_table


class StoredRuns(MadeLater[Run]):
    """The runs of one trial, which lie together in `table`.

    Args:
        block: the runs in `table` of many trials, of which number `place` is this one.
    """

    def __init__(self, table: pa.Table, block: TrialBlock, place: int) -> None:
        self._table = table
        self.block = block
        self._place = place

    @property
    def columns(self) -> RunColumns:
        """What analysis reads of them, with why they were disturbed, where that is recorded. Made anew every time: ten
        thousand trials' would take as much memory as what they show."""
        begin, end = self.block.span(self._place)
        columns = self.block.columns.between(begin, end)
        noted = self._table.column("disturbance")
        if noted.null_count == len(noted):
            return columns
        return replace(columns, reasons=tuple(noted.slice(begin, end - begin).drop_null().to_pylist()))

    @property
    def has_disturbed(self) -> bool:
        """Whether one of them was disturbed."""
        return self.block.has_disturbed(self._place)

    @property
    def cells(self) -> TrialCells:
        """What the full-length cells come to."""
        return self.block.cells(self._place)

    @override
    def _make(self) -> tuple[Run, ...]:
        return tuple(from_table(self._table.slice(self.block.span(self._place)[0], len(self)), Run))

    @override
    def __len__(self) -> int:
        begin, end = self.block.span(self._place)
        return end - begin


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
    return whole(table.column(name))
