"""What the fresh processes of one side measured, as arrays, and the metrics by which sides are compared."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvray.analysis.evidence import DECODE, METRICS, PEAK, SEARCH_ROUND, TTFT, Array, Flags, Indices, confirm_round
from kvray.analysis.pooling import FULL_RUNG
from kvray.record import TrialResult
from kvray.workload import Cell, WorkloadProfile


class ComparedMetric(enum.StrEnum):
    """What two sides are compared by."""

    TTFT = "ttft"
    DECODE = "decode"
    MEMORY = "memory"

    @property
    def column(self) -> int:
        """Its place along the last axis of `SideSamples.logs`."""
        return _COLUMNS[self]

    @property
    def worse_is_more(self) -> bool:
        """Whether a higher value is a worse one."""
        return self is not ComparedMetric.DECODE

    @property
    def title(self) -> str:  # type: ignore[override]
        """Its name for people, in place of the method of `str`."""
        return _TITLES[self]

    @property
    def unit(self) -> str:
        """The unit of its values."""
        return _UNITS[self]


_COLUMNS = {ComparedMetric.TTFT: TTFT, ComparedMetric.DECODE: DECODE, ComparedMetric.MEMORY: PEAK}
_TITLES = {
    ComparedMetric.TTFT: "time to first token",
    ComparedMetric.DECODE: "decode throughput",
    ComparedMetric.MEMORY: "peak memory",
}
_UNITS = {ComparedMetric.TTFT: "ms", ComparedMetric.DECODE: "tok/s", ComparedMetric.MEMORY: "MiB"}


@dataclass(frozen=True, kw_only=True)
class SideSamples:
    """P fresh processes of one candidate on one side.

    Attributes:
        cells: C cells of the profile, in its order.
        logs: P × C × 3 natural logarithms of TTFT (ms), decode throughput (tok/s) and peak (MiB), each the median of
            the process's calm runs; NaN where it was not measured.
        rounds: P: round of the measurement, from 1, or 0. Processes of both sides in one round of one session ran one
            after the other and are compared as a pair.
        sessions: P: which sitting measured the process. Sides that took turns have the same one.
        disturbed: P: whether the process lacks an undisturbed run of some cell.
        library_mib: P: MiB of the peak that pages of shared libraries' files take; `None` where that is not known.
    """

    cells: tuple[Cell, ...]
    logs: Array
    rounds: Indices
    sessions: tuple[str, ...]
    disturbed: Flags
    library_mib: Array | None = None

    def at(self, rows: Indices) -> SideSamples:
        """The processes in these rows, in this order."""
        return SideSamples(
            cells=self.cells,
            logs=self.logs[rows],
            rounds=self.rounds[rows],
            sessions=tuple(self.sessions[row] for row in rows.tolist()),
            disturbed=self.disturbed[rows],
            library_mib=None if self.library_mib is None else self.library_mib[rows],
        )

    def calm(self) -> SideSamples:
        """The undisturbed processes, or all where there are no others."""
        return self.at(np.flatnonzero(~self.disturbed | self.disturbed.all()))

    def with_libraries_of(self, mib: float) -> SideSamples:
        """With the peaks that the processes would have if libraries' files took `mib` of each, where that is known."""
        if self.library_mib is None:
            return self
        with np.errstate(invalid="ignore", divide="ignore"):  # a peak that is missing, or less than a library
            peaks = np.log(np.exp(self.logs[..., PEAK]) + (mib - self.library_mib)[:, None])
        logs = self.logs.copy()
        logs[..., PEAK] = np.where(np.isfinite(peaks), peaks, np.nan)
        return replace(self, logs=logs, library_mib=np.full(len(logs), mib))

    def of_cells(self, cells: Sequence[Cell]) -> SideSamples:
        """All processes, with these cells of theirs only."""
        places = [self.cells.index(cell) for cell in cells]
        return replace(self, cells=tuple(cells), logs=self.logs[:, places])


def side_samples(results: Sequence[TrialResult], profile: WorkloadProfile) -> SideSamples:
    """The full-length cells of each process in `results`, all of one candidate. The session is the record's run id.

    Processes that measured no full-length cell are left out.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # a measured zero becomes NaN below
        kept = [one for one in results if one.cells.place_of]
    sizes = dict.fromkeys(one.record.batch_size for one in kept)
    cells = tuple(dict.fromkeys(cell for size in sizes for cell in profile.cells(size, rung=FULL_RUNG)))
    logs = np.full((len(kept), len(cells), len(METRICS)), np.nan)
    for row, one in enumerate(kept):
        for column, cell in enumerate(cells):
            if cell in one.cells.place_of:
                logs[row, column] = _cell_logs(one, cell)
    return SideSamples(
        cells=cells,
        logs=logs,
        rounds=np.array([confirm_round(one.record) or SEARCH_ROUND for one in kept], dtype=np.int64),
        sessions=tuple(one.record.run_id for one in kept),
        disturbed=np.array([not one.cells.disturbed.isdisjoint(cells) for one in kept], dtype=np.bool_),
        library_mib=known_or_none([one.record.library_mib for one in kept]),
    )


def known_or_none(values: Sequence[float | None]) -> Array | None:
    """`values` as an array where each is known."""
    return None if None in values else np.array(values, dtype=np.float64)


def _cell_logs(result: TrialResult, cell: Cell) -> Array:
    """NaN where the process did not measure a metric, or measured nothing above zero."""
    figures, row = result.cells.figures, result.cells.start + result.cells.place_of[cell]
    logs = np.where(np.isfinite(figures.log_medians[row]), figures.log_medians[row], np.nan)
    return np.where(np.isnan(figures.medians[row, :3]), np.nan, logs)
