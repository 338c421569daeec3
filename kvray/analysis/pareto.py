"""Which points are not beaten in everything: TTFT, throughput and memory at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvray.analysis.aggregate import Metrics


def pareto_front(points: Sequence[Metrics]) -> tuple[bool, ...]:
    """For each point, whether no other dominates it.

    One dominates another if it is at least as good in TTFT (lower), throughput (higher) and peak memory (lower), and
    better in one. Where either of two points lacks a peak, their memory counts as equal. Equal points are on the front
    together.
    """
    peaks = [math.nan if one.peak_mib is None else one.peak_mib for one in points]
    costs = np.array([(one.ttft_ms, -one.decode_tok_s, peak) for one, peak in zip(points, peaks, strict=True)])
    if len(points) and not np.isnan(costs).any():
        return _front_of_known(costs)
    return tuple(not _is_dominated(cost, costs) for cost in costs)


def _front_of_known(costs: npt.NDArray[np.float64]) -> tuple[bool, ...]:
    """A point that another dominates is dominated by one on the front, which is no worse in the first figure."""
    on_front = np.zeros(len(costs), dtype=np.bool_)
    order = np.lexsort(costs.T[::-1])
    front = np.empty_like(costs)
    found = 0
    for first in range(0, len(order), _AT_ONCE):
        some = order[first : first + _AT_ONCE]
        before = front[:found]
        for place in some[~_are_dominated(costs[some], before)].tolist():
            if not _is_dominated(costs[place], front[:found]):
                on_front[place], front[found] = True, costs[place]
                found += 1
    return tuple(on_front.tolist())


_AT_ONCE = 256
"""Points that are compared together with those on the front so far."""


def _are_dominated(costs: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """`_is_dominated` of each of `costs`, none of which is NaN."""
    is_as_good, is_better = np.array(True), np.array(False)
    for column, of_others in zip(costs.T[:, :, None], others.T, strict=True):
        is_as_good, is_better = is_as_good & (of_others <= column), is_better | (of_others < column)
    return np.asarray((is_as_good & is_better).any(axis=1))


def _is_dominated(cost: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> bool:
    """Compared column by column, all others at once. A comparison with a peak that is not known (NaN) is false."""
    return bool((~(others > cost).any(axis=1) & (others < cost).any(axis=1)).any())


MEMORY_STEP = 0.02
"""Share of the peak that is materially less: a smaller saving makes no fallback and decides no tie."""
NOISE_TTFT, NOISE_DECODE = 0.06, 0.04
"""Relative differences between two single runs that mean nothing: TTFT spreads by 6 % between processes (FACTS)."""


def is_beaten_clearly(point: Metrics, other: Metrics) -> bool:
    """Whether `other` is as good as `point` in TTFT, throughput and memory, or worse by no more than noise.

    A point that no other beats so is on the Pareto front by a margin worth keeping: faster or leaner than all others
    that come near it. Where a peak is not known memory counts as equal.
    """
    return (
        other.ttft_ms <= point.ttft_ms * (1 + NOISE_TTFT)
        and other.decode_tok_s >= point.decode_tok_s / (1 + NOISE_DECODE)
        and (other.peak_mib is None or point.peak_mib is None or other.peak_mib <= point.peak_mib * (1 + MEMORY_STEP))
    )


def covers(one: Metrics, other: Metrics) -> bool:
    """Whether every point that `other` beats clearly is beaten so by `one`, too."""
    return (
        one.ttft_ms <= other.ttft_ms
        and one.decode_tok_s >= other.decode_tok_s
        and (one.peak_mib is None or (other.peak_mib is not None and one.peak_mib <= other.peak_mib))
    )
