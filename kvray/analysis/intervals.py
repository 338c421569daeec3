"""95 % intervals: of a candidate's gain over the baseline, and of its TTFT and throughput as such."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kvray.analysis.evidence import METRICS, SEARCH_ROUND, Array, Evidence
from kvray.analysis.noise import half_width_95, process_variances


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


def metric_interval(evidence: Evidence, candidate_id: str, metric: int) -> LogInterval:
    """Where the mean over many fresh processes of the candidate lies."""
    rows = evidence.owner == evidence.place_of[candidate_id]
    variances = process_variances(evidence, _axis(metric), paired=False).own
    return _weighted(evidence, rows / rows.sum(), metric, variances)


def gain_interval(evidence: Evidence, candidate_id: str, baseline_id: str, metric: int) -> LogInterval:
    """Where the candidate's logarithm less the baseline's lies.

    It rests on the confirming rounds that measured both, each of which is a pair, and only if there are none on all
    processes. Exactly 0 for the baseline itself.
    """
    return gain_intervals(evidence, (candidate_id,), baseline_id, metric)[candidate_id]


def gain_intervals(
    evidence: Evidence, candidate_ids: Iterable[str], baseline_id: str, metric: int
) -> dict[str, LogInterval]:
    """The `gain_interval` of each of many candidates, at the price of one: what is believed of the noise is shared."""
    variances = process_variances(evidence, _axis(metric)).own
    return {key: _gain(evidence, key, baseline_id, metric, variances) for key in candidate_ids}


def paired_rounds(evidence: Evidence, candidate_id: str, baseline_id: str) -> list[int]:
    """Confirming rounds that measured both on the same device."""
    ours, theirs = (
        set(evidence.rounds[evidence.owner == evidence.place_of[key]].tolist()) for key in (candidate_id, baseline_id)
    )
    return sorted((ours & theirs) - {SEARCH_ROUND})


def _gain(evidence: Evidence, candidate_id: str, baseline_id: str, metric: int, variances: Array) -> LogInterval:
    if candidate_id == baseline_id:
        return LogInterval(value=0.0, half_width=0.0)
    ours, theirs = (evidence.owner == evidence.place_of[key] for key in (candidate_id, baseline_id))
    if pairs := paired_rounds(evidence, candidate_id, baseline_id):
        ours, theirs = (rows & np.isin(evidence.rounds, pairs) for rows in (ours, theirs))
    return _weighted(evidence, ours / ours.sum() - theirs / theirs.sum(), metric, variances)


def _weighted(evidence: Evidence, share: Array, metric: int, variances: Array) -> LogInterval:
    """The interval of a weighted sum of processes, each with its candidate's noise (a column of `variances`)."""
    rows = np.flatnonzero(share)
    own = share[rows]
    between = variances[:, evidence.owner[rows]] @ own**2
    return LogInterval(
        value=float(own @ evidence.logs[rows, metric]),
        half_width=half_width_95(between + float(own**2 @ evidence.within[rows, metric])),
    )


def _axis(metric: int) -> Array:
    axis = np.zeros(len(METRICS))
    axis[metric] = 1.0
    return axis
