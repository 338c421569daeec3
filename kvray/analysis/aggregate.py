"""From raw runs to metrics: the median of a cell's runs, then the geometric mean over cells."""

from __future__ import annotations

from dataclasses import dataclass

from kvray.workload import Cell


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Warm metrics of one cell, or of a candidate over all its cells. Units are in the names."""

    ttft_ms: float
    itl_p50_ms: float
    itl_p95_ms: float
    itl_p99_ms: float
    decode_tok_s: float
    peak_mib: float | None


@dataclass(frozen=True, kw_only=True)
class CellMetrics:
    """What one candidate did on one cell."""

    cell: Cell
    metrics: Metrics
    runs: int
