"""What the runs of many trials come to, cell by cell. All cells are computed at once: one by one a million runs take
half a minute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from kvray.run_columns import FULL_LENGTH_RUNGS, Floats, Integers, RunColumns
from kvray.workload import Cell

_NONE = frozenset[Cell]()
ITL_SHARES = (0.5, 0.95, 0.99)
"""The percentiles of token gaps that are reported."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CellFigures:
    """N full-length cells, those of one trial together and in order. Disturbed runs are left out of a cell that has
    others.

    Attributes:
        shapes: N × 3: context tokens, output tokens, batch size.
        runs: how many runs the figures rest on.
        is_disturbed: whether all of them were disturbed.
        medians: N × 4: TTFT (ms), decode throughput (tok/s), peak (MiB) and energy (J a token); the latter two NaN
            where a run lacks them.
        itl_ms: N × 3: percentiles of all token gaps.
        log_medians: N × 3: medians of the logarithms of TTFT, throughput and peak (0 where a run lacks it).
        log_squares: N × 3: sums of the squares by which these logarithms differ from their mean.
    """

    shapes: Integers
    runs: Integers
    is_disturbed: npt.NDArray[np.bool_]
    medians: Floats
    itl_ms: Floats
    log_medians: Floats
    log_squares: Floats

    @cached_property
    def metrics(self) -> list[list[float]]:
        """TTFT, the percentiles of token gaps, throughput, peak and energy, each as a list of N: to take a trial's rows
        out of arrays takes several times as long."""
        ttft_ms, decode_tok_s, peak_mib, energy_j_per_tok = self.medians.T.tolist()
        return [ttft_ms, *self.itl_ms.T.tolist(), decode_tok_s, peak_mib, energy_j_per_tok]

    @cached_property
    def logs(self) -> Floats:
        """N × 7 natural logarithms of `metrics`."""
        return logarithms(np.array(self.metrics).T)

    @cached_property
    def run_counts(self) -> list[int]:
        """`runs` as a list."""
        return self.runs.tolist()  # type: ignore[no-any-return]


def logarithms(values: npt.ArrayLike) -> Floats:
    """Natural ones. That of 0, which a token gap below the clock's resolution has, is minus infinity."""
    with np.errstate(divide="ignore"):
        return np.log(np.ascontiguousarray(values, dtype=np.float64))


class TrialCells:
    """The cells of one trial: rows `start` to `stop` of `figures`."""

    def __init__(self, figures: CellFigures, start: int, stop: int) -> None:
        self.figures = figures
        self.start = start
        self.stop = stop

    @cached_property
    def place_of(self) -> Mapping[Cell, int]:
        """For each cell its row within this trial's."""
        return _places(self.figures.shapes[self.start : self.stop].tobytes())

    @cached_property
    def disturbed(self) -> frozenset[Cell]:
        """The cells without an undisturbed run."""
        flags = self.figures.is_disturbed[self.start : self.stop].tolist()
        return frozenset(cell for cell, flag in zip(self.place_of, flags, strict=True) if flag) if any(flags) else _NONE

    def places(self, cells: tuple[Cell, ...]) -> tuple[int, ...] | None:
        """The row of each of `cells` within this trial's; `None` where one was not measured."""
        return _places_of(self.figures.shapes[self.start : self.stop].tobytes(), cells)

    def rows(self, cells: tuple[Cell, ...]) -> list[int]:
        """The rows of these cells, all of which were measured, in `figures`."""
        return [self.start + place for place in self.places(cells) or ()]


class TrialBlock:
    """Runs of many trials, of each together.

    Args:
        columns: of all of them.
        starts: T + 1: trial n has the runs from `starts[n]` to before `starts[n + 1]`.
    """

    def __init__(self, columns: RunColumns, starts: Sequence[int]) -> None:
        self.columns = columns
        self._starts = starts

    def span(self, trial: int) -> tuple[int, int]:
        """Where the runs of one trial lie in `columns`."""
        return self._starts[trial], self._starts[trial + 1]

    def has_disturbed(self, trial: int) -> bool:
        """Whether one of its runs was disturbed."""
        begin, end = self.span(trial)
        return bool(self._are_disturbed and self.columns.disturbed[begin:end].any())

    @cached_property
    def _are_disturbed(self) -> bool:
        return bool(self.columns.disturbed[self._starts[0] : self._starts[-1]].any())

    def compute(self) -> None:
        """Compute the cells of all trials, if that was not done yet."""
        _ = self._computed

    def cells(self, trial: int) -> TrialCells:
        """Those of one trial. The first call computes them for all."""
        figures, bounds = self._computed
        return TrialCells(figures, bounds[trial], bounds[trial + 1])

    @cached_property
    def _computed(self) -> tuple[CellFigures, list[int]]:
        trials = np.repeat(np.arange(len(self._starts) - 1), np.diff(self._starts))
        groups = _Groups.of(self.columns.between(self._starts[0], self._starts[-1]), trials)
        return groups.figures(), np.searchsorted(groups.trials, np.arange(len(self._starts))).tolist()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Groups:
    """The runs of N cells.

    Attributes:
        trials: N: whose cell it is.
        places: which runs count, those of a cell together.
        counts: N: how many of them each cell has.
    """

    columns: RunColumns
    trials: Integers
    shapes: Integers
    is_disturbed: npt.NDArray[np.bool_]
    places: Integers
    counts: Integers

    @classmethod
    def of(cls, columns: RunColumns, trials: Integers) -> _Groups:
        """Args: trials: of each run in `columns`."""
        full = np.flatnonzero(np.isin(columns.rung, FULL_LENGTH_RUNGS))
        keys = np.stack([trials, columns.context_tokens, columns.output_tokens, columns.batch_size], axis=1)[full]
        order = np.lexsort(keys.T[::-1])
        places, keys = full[order], keys[order]
        is_first = np.ones(len(keys), dtype=np.bool_)
        is_first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
        group = np.cumsum(is_first) - 1
        firsts, disturbed = keys[is_first], columns.disturbed[places]
        cells = len(firsts)
        is_disturbed = np.bincount(group, disturbed, cells) == np.bincount(group, minlength=cells)
        counts_now = ~disturbed | is_disturbed[group]
        return cls(
            columns=columns,
            trials=firsts[:, 0],
            shapes=np.ascontiguousarray(firsts[:, 1:]),
            is_disturbed=is_disturbed,
            places=places[counts_now],
            counts=np.bincount(group[counts_now], minlength=cells),
        )

    def figures(self) -> CellFigures:
        """Cells with equally many runs are computed together."""
        cells, starts = len(self.counts), np.cumsum(self.counts) - self.counts
        medians, log_medians, log_squares = np.empty((cells, 4)), np.empty((cells, 3)), np.empty((cells, 3))
        itl_ms = np.empty((cells, len(ITL_SHARES)))
        for runs in np.unique(self.counts).tolist():
            alike = np.flatnonzero(self.counts == runs)
            places = self.places[starts[alike][:, None] + np.arange(runs)]
            medians[alike] = self._medians(places)
            log_medians[alike], log_squares[alike] = self._logs(places)
            itl_ms[alike] = self._percentiles(places)
        return CellFigures(
            shapes=self.shapes,
            runs=self.counts,
            is_disturbed=self.is_disturbed,
            medians=medians,
            itl_ms=itl_ms,
            log_medians=log_medians,
            log_squares=log_squares,
        )

    def _medians(self, places: Integers) -> Floats:
        columns = self.columns
        tokens = (columns.output_tokens * columns.batch_size)[places]
        metrics = (columns.ttft_ms, columns.decode_tok_s, columns.peak_mib, columns.energy_j)
        values = [metric[places] for metric in metrics]
        values[3] = values[3] / tokens
        return np.stack([_median(one) for one in values], axis=1)

    def _logs(self, places: Integers) -> tuple[Floats, Floats]:
        columns = self.columns
        peaks = columns.peak_mib[places]
        known = np.where(np.isnan(peaks), 1.0, peaks)
        logs = np.log(np.stack([columns.ttft_ms[places], columns.decode_tok_s[places], known], axis=1))
        squares = ((logs - logs.mean(axis=2, keepdims=True)) ** 2).sum(axis=2)
        return _median(logs), squares

    def _percentiles(self, places: Integers) -> Floats:
        """Cells with equally many gaps are computed together."""
        starts = self.columns.gap_starts[places]
        lengths = self.columns.gap_stops[places] - starts
        totals = lengths.sum(axis=1)
        found = np.full((len(places), len(ITL_SHARES)), np.nan)
        for total in np.unique(totals[totals > 0]).tolist():
            alike = totals == total
            ordered = _taken(self.columns.gaps_ms, starts[alike].ravel(), lengths[alike].ravel()).reshape(-1, total)
            ordered.sort(axis=1)
            found[alike] = np.stack([_at_share(ordered, share) for share in ITL_SHARES], axis=1)
        return found


def _taken(values: Floats, starts: Integers, lengths: Integers) -> Floats:
    """A copy of the pieces of `values` that begin at `starts`, one after the other."""
    if (lengths == lengths[0]).all():  # whole pieces are copied faster than single values
        return np.asarray(np.lib.stride_tricks.sliding_window_view(values, int(lengths[0]))[starts])
    shifts = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return np.asarray(values[shifts + np.arange(int(lengths.sum()))])


def _median(values: Floats) -> Floats:
    """Along the last axis; NaN where a value is."""
    ordered, middle = np.sort(values, axis=-1), values.shape[-1] // 2
    is_odd = values.shape[-1] % 2 == 1
    medians = ordered[..., middle] if is_odd else (ordered[..., middle - 1] + ordered[..., middle]) / 2
    return np.where(np.isnan(ordered[..., -1]), np.nan, medians)


def _at_share(ordered: Floats, share: float) -> Floats:
    """Between the two nearest of each row, as `numpy.percentile` interpolates."""
    place = share * (ordered.shape[1] - 1)
    below = int(place)
    low, high = ordered[:, below], ordered[:, min(below + 1, ordered.shape[1] - 1)]
    rest = place - below
    return np.asarray(high - (high - low) * (1 - rest) if rest >= 0.5 else low + (high - low) * rest)


@lru_cache(maxsize=4096)
def _places_of(shapes: bytes, cells: tuple[Cell, ...]) -> tuple[int, ...] | None:
    places = _places(shapes)
    return tuple(places[cell] for cell in cells) if all(cell in places for cell in cells) else None


@lru_cache(maxsize=4096)
def _places(shapes: bytes) -> Mapping[Cell, int]:
    """Remembered, because the trials of a sweep measure the same cells."""
    rows = np.frombuffer(shapes, dtype=np.int64).reshape(-1, 3).tolist()
    return {Cell(*row): place for place, row in enumerate(rows)}
