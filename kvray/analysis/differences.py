"""By how much two sides differ, for many quantities at once, and how sure that is.

Sides that took turns are compared pair by pair: what both processes of a round have in common falls out. Others are
compared as a whole, and the spread between sessions is added. What is believed of the spread between processes is that
of `noise`, corrected by what the two sides show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvray.analysis.evidence import DECODE, SEARCH_ROUND, TTFT, Array, Evidence, Indices
from kvray.analysis.noise import EQUALLY_LIKELY, lone_variances, process_variances, typical_variance

RUN_SD = np.zeros(3)
RUN_SD[[TTFT, DECODE]] = 0.01, 0.015
"""Relative standard deviation of a single run. A process of a check measures each cell once, so its value is noisier
than what processes differ by (`PROCESS_SD`). Measured by `benchmarks/sessions.py` on a quiet 2-core CPU."""
OUTLIER_SDS, DRAWN_IN_TO_SDS = 3.5, 2.0
"""A single value further than the first from the median is drawn in to the second. Two such values are a second mode,
which is left as it is."""
_LEAST_FOR_OUTLIER = 4
"""With three values nobody can tell which one is the outlier."""
_MAD_TO_SD = 1.4826


@dataclass(frozen=True, kw_only=True)
class Differences:
    """The logarithm of now over before, for S quantities.

    Attributes:
        values: S.
        variances: S × `EQUALLY_LIKELY` variances that `values` may have.
        fixed_variances: S, the part of their mean that further processes of now do not reduce.
        rounds: pairs or, without pairs, processes of the smaller side.
    """

    values: Array
    variances: Array
    fixed_variances: Array
    rounds: int


def paired(differences: Array, metric_of: Indices) -> Differences:
    """Args:
    differences: N × S, now less before of each pair.
    metric_of: S: column of the metric, for what is expected of its spread.
    """
    count = len(differences)
    drawn_in, outliers = _outlier_drawn_in(differences, np.sqrt(2 * _typical(metric_of)))
    values = drawn_in.mean(axis=0)
    freedom = np.maximum(count - 1 - outliers, 0.0)
    variances = lone_variances(((drawn_in - values) ** 2).sum(axis=0), freedom, 2 * _typical(metric_of))
    return Differences(values=values, variances=variances / count, fixed_variances=np.zeros(len(values)), rounds=count)


def unpaired(before: Array, now: Array, metric_of: Indices, session_variances: Array) -> Differences:
    """Args:
    before, now: processes × S.
    session_variances: S: of the difference.
    """
    typical, counts = np.sqrt(_typical(metric_of)), np.array([len(before), len(now)])
    before, now = (_outlier_drawn_in(side, typical)[0] for side in (before, now))
    each = [_each_variance(before[:, column], now[:, column], metric) for column, metric in enumerate(metric_of)]
    variances = np.array(each).reshape(-1, EQUALLY_LIKELY, 2) / counts
    return Differences(
        values=now.mean(axis=0) - before.mean(axis=0),
        variances=variances.sum(axis=2) + session_variances[:, None],
        fixed_variances=variances[:, :, 0].mean(axis=1) + session_variances,
        rounds=int(counts.min()),
    )


def _each_variance(before: Array, now: Array, metric: int) -> Array:
    """`EQUALLY_LIKELY` × 2 variances of a process of either side, as a sweep of two candidates is judged: what one side
    shows of the machine's noise tells about the other."""
    counts = np.array([len(before), len(now)])
    logs = np.zeros((counts.sum(), 3))
    logs[:, metric] = np.concatenate([before, now])
    evidence = Evidence(
        ids=("before", "now"),
        contenders=frozenset(("before", "now")),
        owner=np.repeat([0, 1], counts),
        rounds=np.full(len(logs), SEARCH_ROUND),
        logs=logs,
        within=np.tile(RUN_SD**2, (len(logs), 1)),
        disturbed=np.zeros(len(logs), dtype=np.bool_),
    )
    return np.asarray(process_variances(evidence, np.eye(3)[metric], paired=False).own + RUN_SD[metric] ** 2)


def _typical(metric_of: Indices) -> Array:
    """S variances of a process's value that are expected beforehand."""
    each = np.array([typical_variance(axis) for axis in np.eye(3)]) + RUN_SD**2
    return np.asarray(each[metric_of])


def _outlier_drawn_in(values: Array, typical_sds: Array) -> tuple[Array, Array]:
    """N × S `values`, and how many of each quantity were drawn in: at most one."""
    if len(values) < _LEAST_FOR_OUTLIER:
        return values, np.zeros(values.shape[1])
    median = np.median(values, axis=0)
    spread = np.maximum(np.median(np.abs(values - median), axis=0) * _MAD_TO_SD, typical_sds / 2)
    is_outlier = np.abs(values - median) > OUTLIER_SDS * spread
    is_alone = is_outlier.sum(axis=0) == 1
    drawn_in = median + np.sign(values - median) * DRAWN_IN_TO_SDS * spread
    return np.where(is_outlier & is_alone, drawn_in, values), is_alone.astype(np.float64)
