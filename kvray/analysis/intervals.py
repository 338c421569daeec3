"""95 % intervals: of a candidate's gain over the baseline, and of its TTFT and throughput as such."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kvray.analysis.evidence import METRICS, SEARCH_ROUND, Array, Evidence, Indices
from kvray.analysis.in_threads import computed_ahead
from kvray.analysis.noise import half_widths_95, process_variances


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A two-sided 95 % interval around `value`, all three in the same unit."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class LogInterval:
    """`value` ± `half_width`, both of natural logarithms."""

    value: float
    half_width: float

    def negated(self) -> LogInterval:
        """The interval of the inverse: that of a time, because less time is a gain."""
        return LogInterval(value=-self.value, half_width=self.half_width)

    def as_factor(self) -> Interval:
        """The interval of the quantity itself, e.g. in ms."""
        low, value, high = np.exp(self.value + np.array([-1, 0, 1]) * self.half_width).tolist()
        return Interval(value=value, low=low, high=high)

    def as_gain(self) -> Interval:
        """The interval of a relative change; 0 is none."""
        factor = self.as_factor()
        return Interval(value=factor.value - 1, low=factor.low - 1, high=factor.high - 1)


def as_gains(intervals: Sequence[LogInterval]) -> list[Interval]:
    """`as_gain` of each, computed at once."""
    each = np.array([(one.value, one.half_width) for one in intervals]).reshape(-1, 2, 1)
    gains = np.exp(each[:, 0] + np.array([-1, 0, 1]) * each[:, 1]) - 1
    return [Interval(value=value, low=low, high=high) for low, value, high in gains.tolist()]


def metric_interval(evidence: Evidence, candidate_id: str, metric: int) -> LogInterval:
    """Where the mean over many fresh processes of the candidate lies."""
    rows = evidence.rows_of(candidate_id).tolist()
    variances = process_variances(evidence, _axis(metric), paired=False).own
    return _intervals(evidence, _Sums.of([(rows, [1 / len(rows)] * len(rows))]), metric, variances)[0]


def gain_interval(evidence: Evidence, candidate_id: str, baseline_id: str, metric: int) -> LogInterval:
    """Where the candidate's logarithm less the baseline's lies.

    It rests on the confirming rounds that measured both, each of which is a pair, and only if there are none on all
    processes. Exactly 0 for the baseline itself.
    """
    return gain_intervals(evidence, (candidate_id,), baseline_id, (metric,))[0][candidate_id]


def gain_intervals(
    evidence: Evidence, candidate_ids: Iterable[str], baseline_id: str, metrics: Sequence[int]
) -> list[dict[str, LogInterval]]:
    """For each of `metrics`, the `gain_interval` of each of many candidates, at the price of one: what is believed of
    the noise is shared."""
    ids = tuple(candidate_ids)
    none = LogInterval(value=0.0, half_width=0.0)
    others = [key for key in ids if key != baseline_id]
    sums = _Sums.of([_gain_weights(evidence, key, baseline_id) for key in others])

    def of_others(metric: int) -> list[LogInterval]:
        return _intervals(evidence, sums, metric, process_variances(evidence, _axis(metric)).own)

    found = (
        dict(zip(others, one, strict=True)) for one in computed_ahead(of_others, metrics, rows=len(evidence.owner))
    )
    return [{key: one.get(key, none) for key in ids} for one in found]


def paired_rounds(evidence: Evidence, candidate_id: str, baseline_id: str) -> list[int]:
    """Confirming rounds that measured both on the same device."""
    if not {candidate_id, baseline_id} <= evidence.confirmed_ids:
        return []
    ours, theirs = (set(evidence.rounds[evidence.rows_of(key)].tolist()) for key in (candidate_id, baseline_id))
    return sorted((ours & theirs) - {SEARCH_ROUND})


_Weighted = tuple[list[int], list[float]]
"""Processes, and with which weight each of them is summed."""


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """Sums of processes with weights, one after the other.

    Attributes:
        starts: where each sum begins.
    """

    rows: Indices
    weights: Array
    starts: Indices

    @classmethod
    def of(cls, sums: Sequence[_Weighted]) -> _Sums:
        return cls(
            rows=np.array([row for rows, _ in sums for row in rows], dtype=np.int64),
            weights=np.array([weight for _, weights in sums for weight in weights]),
            starts=np.cumsum([0, *(len(rows) for rows, _ in sums)])[:-1],
        )


def _gain_weights(evidence: Evidence, candidate_id: str, baseline_id: str) -> _Weighted:
    ours, theirs = (evidence.rows_of(key).tolist() for key in (candidate_id, baseline_id))
    if pairs := paired_rounds(evidence, candidate_id, baseline_id):
        ours, theirs = ([row for row in rows if evidence.rounds[row] in pairs] for rows in (ours, theirs))
    return ours + theirs, [1 / len(ours)] * len(ours) + [-1 / len(theirs)] * len(theirs)


def _intervals(evidence: Evidence, sums: _Sums, metric: int, variances: Array) -> list[LogInterval]:
    """Those of the sums, each process with its candidate's noise (a column of `variances`)."""
    if not len(sums.starts):
        return []
    rows, weights, starts = sums.rows, sums.weights, sums.starts
    values = np.add.reduceat(weights * evidence.logs[rows, metric], starts)
    within = np.add.reduceat(weights**2 * evidence.within[rows, metric], starts)
    between = np.add.reduceat(variances[:, evidence.owner[rows]] * weights**2, starts, axis=1)
    widths = half_widths_95((between + within).T)
    return [LogInterval(value=value, half_width=width) for value, width in zip(values.tolist(), widths, strict=True)]


def _axis(metric: int) -> Array:
    axis = np.zeros(len(METRICS))
    axis[metric] = 1.0
    return axis
