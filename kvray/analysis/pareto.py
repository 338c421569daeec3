"""Which points are not beaten in everything: TTFT, throughput and memory at once."""

from __future__ import annotations

from collections.abc import Sequence

from kvray.analysis.aggregate import Metrics


def pareto_front(points: Sequence[Metrics]) -> tuple[bool, ...]:
    """For each point, whether no other dominates it.

    One dominates another if it is at least as good in TTFT (lower), throughput (higher) and peak memory (lower), and
    better in one. Where either of two points lacks a peak, their memory counts as equal. Equal points are on the front
    together. Quadratic in the number of points.
    """
    return tuple(not any(_dominates(other, point) for other in points) for point in points)


def _dominates(one: Metrics, other: Metrics) -> bool:
    edges = [other.ttft_ms - one.ttft_ms, one.decode_tok_s - other.decode_tok_s]
    if one.peak_mib is not None and other.peak_mib is not None:
        edges.append(other.peak_mib - one.peak_mib)
    return min(edges) >= 0 and max(edges) > 0
