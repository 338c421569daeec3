"""Which numbers a record may hold: whoever divides by them or takes logarithms relies on it. kvray writes no others."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kvray.errors import InvalidValueError
from kvray.record import Run, TrialRecord

LEAST, MOST = 1e-9, 1e15
"""Bounds of a measured time, rate or size, whatever its unit. No machine measures beyond, and no ratio overflows."""
_METRICS = ("ttft_ms", "decode_tok_s", "peak_mib", "reserved_peak_mib")
_COUNTS = ("context_tokens", "output_tokens", "batch_size")
_MAY_BE_ZERO = ("itl_p50_ms", "itl_p95_ms", "itl_p99_ms", "energy_j", "energy_j_per_tok")


def check_plausible(item: Run | TrialRecord) -> None:
    """Refuse what cannot have been measured.

    Raises:
        ValueError: names the field and its value.
    """
    for name in (*_METRICS, *_MAY_BE_ZERO):
        _check(name, getattr(item, name, None), may_be_zero=name in _MAY_BE_ZERO)
    if isinstance(item, TrialRecord):
        check_candidate(item)
        return
    for name in _COUNTS:
        if getattr(item, name) < 1:
            raise ValueError(f"{name} {getattr(item, name)} is not a positive number")
    for value in item.itl_ms:
        _check("itl_ms", value, may_be_zero=True)


def check_candidate(record: TrialRecord) -> None:
    """Refuse a record whose id is not that of its configuration.

    Raises:
        ValueError: names the id, or the field that no configuration has.
    """
    try:
        own = record.candidate.candidate_id
    except InvalidValueError as error:
        raise ValueError(error.message.rstrip(".")) from error
    if record.candidate_id != own:
        raise ValueError(f"candidate_id {record.candidate_id!r} is not that of its fields, {own!r}")


def have_plain_figures(table: pa.Table) -> bool:
    """Whether `check_plausible` passes the figures of all trials in `table`, which has the columns of `TrialRecord`."""
    names = [name for name in (*_METRICS, *_MAY_BE_ZERO) if name in TrialRecord.__dataclass_fields__]
    return all(_all_within(table.column(name), LEAST, may_be_zero=name in _MAY_BE_ZERO) for name in names)


def are_plain_runs(table: pa.Table) -> bool:
    """Whether `check_plausible` passes every run in `table`, which has the columns of `Run`. It may say no where that
    passes too: rows that are out of the ordinary are to be looked at one by one.

    Raises:
        ArrowInvalid: the table is damaged.
    """
    required = [one.name for one in fields(Run) if one.default is MISSING]
    gaps = pc.list_flatten(table.column("itl_ms"))
    table.validate(full=True)  # text that is not UTF-8, offsets that lead nowhere
    return (
        not any(table.column(name).null_count for name in required)
        and not gaps.null_count
        and all(_all_within(table.column(name), LEAST) for name in _METRICS)
        and _all_within(table.column("energy_j"), LEAST, may_be_zero=True)
        and _all_within(gaps, LEAST, may_be_zero=True)
        and all(_all_within(table.column(name), 1) for name in _COUNTS)
        and _all_within(pc.year(table.column("started_at")), 1, 9999)
    )


def numbers(array: pa.Array) -> npt.NDArray[Any]:
    """The numbers in `array` as they lie there, anything where it is null. Arrow's `to_numpy` would import pandas."""
    _, buffer = array.buffers()
    kind = np.dtype(str(array.type).replace("double", "float64"))
    if not len(array) or buffer is None:
        return np.zeros(len(array), kind)
    return np.frombuffer(buffer, kind, count=len(array), offset=array.offset * kind.itemsize)


def whole(column: pa.ChunkedArray) -> pa.Array:
    """`column` in one piece, which is copied only where it has several."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _all_within(values: pa.ChunkedArray, least: float, most: float = MOST, *, may_be_zero: bool = False) -> bool:
    """Nulls are; NaN is not."""
    if _are_ordinary(values, least, most):
        return True
    is_within = pc.and_(pc.greater_equal(values, least), pc.less_equal(values, most))
    if may_be_zero:
        is_within = pc.or_(is_within, pc.equal(values, 0.0))
    return pc.all(is_within).as_py() is not False


def _are_ordinary(values: pa.ChunkedArray, least: float, most: float) -> bool:
    """Whether none is null or zero, and all are within: said in one pass over the numbers."""
    if values.null_count or not len(values):
        return values.null_count == len(values)
    for chunk in values.chunks:
        found = numbers(chunk)
        if len(found) and not (found.min() >= least and found.max() <= most):  # both are NaN where one is
            return False
    return True


def _check(name: str, value: float | None, *, may_be_zero: bool) -> None:
    if value is None or (may_be_zero and value == 0):
        return
    if not LEAST <= value <= MOST:
        raise ValueError(f"{name} {value} was never measured")
