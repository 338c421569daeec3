"""`Measured`: what all trials of a candidate come to, for the ranking and for what is best so far."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvray.analysis.aggregate import CellMetrics, Metrics, aggregate
from kvray.analysis.pooling import full_length_cells, with_quality_of
from kvray.analysis.score import utility
from kvray.record import TrialRecord, TrialResult, TrialStatus
from kvray.workload import WorkloadProfile


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A candidate with every cell measured; `cold_s` is the median over its trials."""

    record: TrialRecord
    cells: Sequence[CellMetrics]
    metrics: Metrics
    utility: float
    cold_s: float | None

    @classmethod
    def of(
        cls, pool: Sequence[TrialResult], profile: WorkloadProfile, *, quality_of: TrialRecord | None = None
    ) -> Measured:
        """What a candidate's trials measured. `quality_of` has the quality: confirming trials have none."""
        cells = full_length_cells(pool, profile)
        metrics = aggregate(cells)
        return cls(
            record=_representative([trial.record for trial in pool], quality_of),
            cells=cells,
            metrics=metrics,
            utility=utility(metrics, profile),
            cold_s=_cold_s(trial.record for trial in pool),
        )

    @property
    def order(self) -> tuple[float, float, str, str]:
        """Sorts the best first: by utility, then by lower memory, then by label."""
        return (*order_of(self.utility, self.metrics), self.record.candidate.label, self.record.trial_id)


def order_of(utility: float, metrics: Metrics) -> tuple[float, float]:
    """Sorts the best candidate first: by utility, then by lower memory."""
    return -utility, math.inf if metrics.peak_mib is None else metrics.peak_mib


def _representative(records: Sequence[TrialRecord], quality_of: TrialRecord | None) -> TrialRecord:
    """The first that ended ok (if one did), with the quality that the candidate's search trial measured."""
    first = next((record for record in records if record.status is TrialStatus.OK), records[0])
    return with_quality_of(quality_of, first)


def _cold_s(records: Iterable[TrialRecord]) -> float | None:
    known = [cold_s for record in records if (cold_s := _cold_s_of(record)) is not None]
    return statistics.median(known) if known else None


def _cold_s_of(record: TrialRecord) -> float | None:
    """Records older than the column `cold_s` tell only what loading and all warm-up calls took."""
    if record.cold_s is not None:
        return record.cold_s
    if record.load_s is None or record.warmup_s is None:
        return None
    return record.load_s + record.warmup_s
