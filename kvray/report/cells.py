"""The heat map's data: every candidate on every cell, against the baseline or, without one, against the cell's best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from kvray.analysis.aggregate import CellMetrics, Metrics
from kvray.analysis.ranking import Ranking
from kvray.report.rows import label_of

Shape = tuple[int, int]
"""Context and output tokens. Batch size belongs to the candidate, so a column holds every batch size."""
Pick = Callable[[Metrics], float]


@dataclass(frozen=True, kw_only=True)
class CellValue:
    """A measurement and how many times as good as the column's reference it is (above 1 is better)."""

    value: float
    times_as_good: float


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """One candidate across the columns; `None` where it was not measured."""

    label: str
    is_winner: bool
    is_baseline: bool
    values: tuple[CellValue | None, ...]


@dataclass(frozen=True, kw_only=True)
class CellGrid:
    """One metric over candidates (rows) and cells (columns, `context→output` tokens)."""

    metric: str
    unit: str
    reference: Literal["the baseline", "the best of each cell"]
    columns: tuple[str, ...]
    rows: tuple[GridRow, ...]


def cell_grids(ranking: Ranking) -> tuple[CellGrid, ...]:
    """First token and throughput, cell by cell; empty when nothing is ranked."""
    if not ranking.entries:
        return ()
    return (
        _grid(ranking, metric="First token", unit="ms", pick=_ttft, lower_is_better=True),
        _grid(ranking, metric="Throughput", unit="tok/s", pick=_tok_s, lower_is_better=False),
    )


def _ttft(metrics: Metrics) -> float:
    return metrics.ttft_ms


def _tok_s(metrics: Metrics) -> float:
    return metrics.decode_tok_s


def _grid(ranking: Ranking, *, metric: str, unit: str, pick: Pick, lower_is_better: bool) -> CellGrid:
    values = [_by_shape(entry.cells, pick) for entry in ranking.entries]
    shapes = sorted({shape for by_shape in values for shape in by_shape})
    baseline = _by_shape(ranking.baseline.cells, pick) if ranking.baseline else {}
    references = baseline or _best(values, shapes, lower_is_better=lower_is_better)

    def cell_value(value: float | None, reference: float | None) -> CellValue | None:
        if not value or not reference:
            return None
        return CellValue(value=value, times_as_good=reference / value if lower_is_better else value / reference)

    return CellGrid(
        metric=metric,
        unit=unit,
        reference="the baseline" if baseline else "the best of each cell",
        columns=tuple(f"{context}→{output}" for context, output in shapes),
        rows=tuple(
            GridRow(
                label=label_of(entry.record),
                is_winner=entry.rank == 1,
                is_baseline=entry.record.candidate_id == ranking.baseline_id,
                values=tuple(cell_value(by_shape.get(shape), references.get(shape)) for shape in shapes),
            )
            for entry, by_shape in zip(ranking.entries, values, strict=True)
        ),
    )


def _by_shape(cells: Iterable[CellMetrics], pick: Pick) -> dict[Shape, float]:
    return {(cell.cell.context_tokens, cell.cell.output_tokens): pick(cell.metrics) for cell in cells}


def _best(
    values: Sequence[dict[Shape, float]], shapes: Sequence[Shape], *, lower_is_better: bool
) -> dict[Shape, float]:
    best = min if lower_is_better else max
    return {shape: best(by_shape[shape] for by_shape in values if shape in by_shape) for shape in shapes}
