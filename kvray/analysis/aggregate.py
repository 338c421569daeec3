"""From raw runs to metrics: the median of a cell's runs, then the geometric mean over cells."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import itemgetter

import numpy as np
from typing_extensions import override

from kvray.cell_figures import TrialCells, logarithms
from kvray.lazy import MadeLater
from kvray.record import Run
from kvray.run_columns import Floats, RunColumns
from kvray.workload import Cell


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Warm metrics of one cell, or of a candidate over all its cells. Units are in the names.

    Attributes:
        energy_j_per_tok: of a generated token, its share of the prefill included.
    """

    ttft_ms: float
    itl_p50_ms: float
    itl_p95_ms: float
    itl_p99_ms: float
    decode_tok_s: float
    peak_mib: float | None
    energy_j_per_tok: float | None = None


_NAMES = tuple(field.name for field in fields(Metrics))


@dataclass(frozen=True, kw_only=True)
class CellMetrics:
    """What one candidate did on one cell.

    Attributes:
        runs: how many the metrics rest on.
        is_disturbed: whether they were all disturbed, because there are no others.
    """

    cell: Cell
    metrics: Metrics
    runs: int
    is_disturbed: bool = False


def runs_at_rung(runs: Iterable[Run], rung: int) -> tuple[Run, ...]:
    """The runs that a trial is judged by once `rung` is complete.

    Rung 0 measures cells of its own (16 output tokens). Rungs 1 and 2 share the full-length cells: the run of rung 1
    is the first repeat, so rung 2 is judged by both.
    """
    rungs = (1, 2) if rung == 2 else (rung,)
    return tuple(run for run in runs if run.rung in rungs)


def undisturbed(runs: Sequence[Run]) -> Sequence[Run]:
    """The runs whose environment stayed calm, or all of them when none did."""
    return [run for run in runs if not run.disturbed] or runs


def aggregate_cell(runs: Sequence[Run]) -> Metrics:
    """Metrics of one cell from its `runs`, of which disturbed ones are left out unless all are.

    TTFT, throughput, peak and energy are medians over the runs (peak and energy `None` if a run lacks them); the ITL
    percentiles are those of all token gaps of these runs together.

    Raises:
        ValueError: there are no runs.
    """
    return aggregate_columns(RunColumns.of(runs))


def aggregate_columns(runs: RunColumns) -> Metrics:
    """`aggregate_cell` of runs that are columns.

    Raises:
        ValueError: there are no runs.
    """
    if not len(runs):
        raise ValueError("a cell without runs has no metrics")
    used = runs.calm
    energy_j_per_tok = used.energy_j / (used.output_tokens * used.batch_size)
    p50, p95, p99 = _percentiles(used.own_gaps_ms)
    return Metrics(
        ttft_ms=statistics.median(used.ttft_ms.tolist()),
        itl_p50_ms=p50,
        itl_p95_ms=p95,
        itl_p99_ms=p99,
        decode_tok_s=statistics.median(used.decode_tok_s.tolist()),
        peak_mib=_of_complete(statistics.median, _known(used.peak_mib)),
        energy_j_per_tok=_of_complete(statistics.median, _known(energy_j_per_tok)),
    )


def _known(values: Floats) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def _percentiles(gaps: Floats) -> tuple[float, float, float]:
    """50, 95 and 99 %, interpolated between the two nearest as `numpy.percentile` does, which takes ten times as long
    for so few values."""
    ordered = np.sort(gaps)
    last = len(ordered) - 1
    return tuple(_between(ordered, share * last) for share in (0.5, 0.95, 0.99))  # type: ignore[return-value]


def _between(ordered: Floats, place: float) -> float:
    below = int(place)
    low, high = float(ordered[below]), float(ordered[min(below + 1, len(ordered) - 1)])
    share = place - below
    return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share


def aggregate_cells(runs: Sequence[Run]) -> tuple[CellMetrics, ...]:
    """Metrics of every cell that `runs` measured, in the order of the cells. Pass the runs of one rung's cells."""
    return cells_of_columns(RunColumns.of(runs).by_cell(full_length=False))


def cells_of_columns(by_cell: Mapping[Cell, RunColumns]) -> tuple[CellMetrics, ...]:
    """Metrics of every cell, in the order of the cells."""
    return tuple(_cell_metrics(cell, by_cell[cell]) for cell in sorted(by_cell))


def cells_of_trial(trial: TrialCells, wanted: Iterable[Cell]) -> StoredCells:
    """Metrics of those of the `wanted` cells that the trial measured, in the order of the cells."""
    cells = tuple(sorted(wanted))
    measured = trial.places(cells)
    if measured is None:
        measured = tuple(place for cell in cells if (place := trial.place_of.get(cell)) is not None)
    return StoredCells(trial, measured)


class StoredCells(MadeLater[CellMetrics]):
    """Cells of one trial.

    Args:
        places: their rows among the trial's.
    """

    def __init__(self, trial: TrialCells, places: Sequence[int]) -> None:
        self._trial = trial
        self._rows = rows = [trial.start + place for place in places]
        begin, end = (rows[0], rows[-1] + 1) if rows else (0, 0)
        self._span = slice(begin, end) if end - begin == len(rows) else None
        self._pick = itemgetter(*rows) if self._span is None else itemgetter(self._span)

    @property
    def runs(self) -> int:
        """How many runs they rest on together."""
        return sum(self._pick(self._trial.figures.run_counts))

    @property
    def columns(self) -> Sequence[Sequence[float]]:
        """Their metrics, in the order of the fields of `Metrics`; NaN where one is not known."""
        return [self._pick(column) for column in self._trial.figures.metrics]

    @property
    def logs(self) -> Floats:
        """Cells × 7 natural logarithms of `columns`."""
        return self._trial.figures.logs[self._rows if self._span is None else self._span]

    @property
    def peaks_mib(self) -> Sequence[float]:
        """The peaks among `columns`, in MiB."""
        return self._pick(self._trial.figures.metrics[_NAMES.index("peak_mib")])  # type: ignore[no-any-return]

    @override
    def _make(self) -> tuple[CellMetrics, ...]:
        figures, disturbed = self._trial.figures, self._trial.disturbed
        cells = (Cell(*shape) for shape in figures.shapes[self._rows].tolist())
        about = zip(cells, zip(*self.columns, strict=True), self._pick(figures.run_counts), strict=True)
        return tuple(
            CellMetrics(cell=cell, metrics=_metrics(values), runs=runs, is_disturbed=cell in disturbed)
            for cell, values, runs in about
        )

    @override
    def __len__(self) -> int:
        return len(self._rows)


def _metrics(values: Iterable[float]) -> Metrics:
    """Args: values: in the order of the fields; NaN where peak or energy is not known."""
    ttft_ms, itl_p50_ms, itl_p95_ms, itl_p99_ms, decode_tok_s, peak_mib, energy_j_per_tok = values
    return Metrics(
        ttft_ms=ttft_ms,
        itl_p50_ms=itl_p50_ms,
        itl_p95_ms=itl_p95_ms,
        itl_p99_ms=itl_p99_ms,
        decode_tok_s=decode_tok_s,
        peak_mib=None if math.isnan(peak_mib) else peak_mib,
        energy_j_per_tok=None if math.isnan(energy_j_per_tok) else energy_j_per_tok,
    )


def _cell_metrics(cell: Cell, runs: RunColumns) -> CellMetrics:
    return CellMetrics(
        cell=cell, metrics=aggregate_columns(runs), runs=len(runs.calm), is_disturbed=bool(runs.disturbed.all())
    )


def aggregate(cells: Sequence[CellMetrics]) -> Metrics:
    """Geometric mean of each metric over `cells`: every cell weighs the same, whatever its scale. Peak and energy are
    `None` if a cell lacks them.

    Raises:
        ValueError: there are no cells.
    """
    if not cells:
        raise ValueError("a candidate without cells has no metrics")
    logs = _logs(cells)
    return _metrics(np.exp(np.add.reduce(logs, axis=0) / len(logs)).tolist())


def _logs(cells: Sequence[CellMetrics]) -> Floats:
    """Cells × 7 natural logarithms of their metrics, in the order of the fields of `Metrics`; NaN where one is not
    known."""
    if isinstance(cells, StoredCells):
        return cells.logs
    return logarithms([[_or_nan(getattr(cell.metrics, name)) for name in _NAMES] for cell in cells])


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def runs_behind(cells: Sequence[CellMetrics]) -> int:
    """How many runs the metrics of `cells` rest on."""
    return cells.runs if isinstance(cells, StoredCells) else sum(cell.runs for cell in cells)


def highest_peak_mib(cells: Sequence[CellMetrics]) -> float | None:
    """Memory (MiB) that lets every one of `cells` run: the highest of their peaks, `None` if one lacks it.

    Not `Metrics.peak_mib`, which is a mean over cells, made for comparing and not for fitting.
    """
    if not cells:
        return None
    peaks = cells.peaks_mib if isinstance(cells, StoredCells) else [_or_nan(cell.metrics.peak_mib) for cell in cells]
    return None if any(map(math.isnan, peaks)) else max(peaks)


def _of_complete(mean: Callable[[Sequence[float]], float], values: Iterable[float | None]) -> float | None:
    """The `mean` of `values`; `None` if one of them is not known."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return mean(known) if len(known) == len(listed) else None
