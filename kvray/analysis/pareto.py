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
