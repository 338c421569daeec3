"""One number per candidate: the weighted sum of logarithms that the scheduler, the ranking and the confidence share."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from kvray.analysis.aggregate import Metrics
from kvray.analysis.evidence import DECODE, METRICS, PEAK, TTFT, Array
from kvray.workload import WorkloadProfile


def utility(metrics: Metrics, profile: WorkloadProfile) -> float:
    """`w_ttft·ln(1/TTFT ms) + w_tput·ln(tok/s) + w_mem·ln(1/peak MiB)`, with the weights of `profile`.

    Only differences mean something: 0.05 more is about 5 % better. The order of candidates does not depend on any
    reference, so it is the same online and at the end. Without a peak the memory term is 0: compare such metrics only
    with others that lack it too, as all candidates of a sweep on a device without memory figures do.
    """
    memory = 0.0 if metrics.peak_mib is None else -profile.weight_memory * math.log(metrics.peak_mib)
    return (
        -profile.weight_ttft * math.log(metrics.ttft_ms)
        + profile.weight_throughput * math.log(metrics.decode_tok_s)
        + memory
    )


def utility_weights(profile: WorkloadProfile) -> Array:
    """Weights of `profile`, in the columns of `Evidence.logs`: multiplied by them, logarithms become utilities."""
    weights = np.zeros(len(METRICS))
    weights[[TTFT, DECODE, PEAK]] = -profile.weight_ttft, profile.weight_throughput, -profile.weight_memory
    return weights


def ideal_utility(all_metrics: Iterable[Metrics], profile: WorkloadProfile) -> float:
    """Utility of a candidate that has the best TTFT, throughput and peak of `all_metrics` at once.

    Raises:
        ValueError: there are no metrics.
    """
    listed = list(all_metrics)
    best = Metrics(
        ttft_ms=min(one.ttft_ms for one in listed),
        itl_p50_ms=0.0,
        itl_p95_ms=0.0,
        itl_p99_ms=0.0,
        decode_tok_s=max(one.decode_tok_s for one in listed),
        peak_mib=min((one.peak_mib for one in listed if one.peak_mib is not None), default=None),
    )
    return utility(best, profile)


def score(utility: float, ideal: float) -> float:
    """`100·exp(utility − ideal)`: 100 is the ideal, half of it is half as good in the weighted geometric mean."""
    return 100.0 * math.exp(utility - ideal)
