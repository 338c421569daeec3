"""Turns of a watch that were skipped because others used the machine, as one small Parquet file beside its history."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from kvray.store.encoding import few_rows

SKIPPED = "skipped.parquet"
MOST_SKIPPED = 1000
"""The newest ones are kept."""
_SCHEMA = pa.schema([("at", pa.timestamp("us", tz="UTC")), ("reason", pa.string())])
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, kw_only=True)
class SkippedTurn:
    """When a turn was skipped, and who used the machine then."""

    at: dt.datetime
    reason: str


def skipped_bytes(turns: Sequence[SkippedTurn]) -> bytes:
    """The file that holds the newest of `turns`."""
    kept = turns[-MOST_SKIPPED:]
    reasons = [one.reason.encode(errors="replace").decode() for one in kept]
    return few_rows(pa.table({"at": [one.at.astimezone(dt.UTC) for one in kept], "reason": reasons}, schema=_SCHEMA))


def skipped_turns(table: pa.Table) -> list[SkippedTurn]:
    """The turns in the file, oldest first.

    Raises:
        ValueError, ArrowException: it is something else.
    """
    if missing := [name for name in _SCHEMA.names if name not in table.column_names]:
        raise ValueError(f"columns are missing: {', '.join(missing)}")
    found = table.select(_SCHEMA.names).cast(_SCHEMA).drop_null()
    moments = found.column("at").cast(pa.int64()).to_pylist()  # of instants pyarrow would import pandas
    pairs = zip(moments, found.column("reason").to_pylist(), strict=True)
    return [SkippedTurn(at=_EPOCH + dt.timedelta(microseconds=moment), reason=reason) for moment, reason in pairs]
