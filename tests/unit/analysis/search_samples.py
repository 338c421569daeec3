"""A space of 24 candidates whose metrics follow from the values of its axes."""

from __future__ import annotations

import itertools
import math

from kvray.analysis.aggregate import Metrics
from kvray.candidate import AttentionBackend, CacheChoice, Candidate, DType

CACHES = ("dynamic", "static", "quantized(backend=hqq,nbits=4)", "quantized(backend=hqq,nbits=8)")
ATTENTIONS = (AttentionBackend.SDPA, AttentionBackend.EAGER, AttentionBackend.SDPA_MATH)
DTYPES = (DType.FLOAT32, DType.BFLOAT16)
CACHE_EFFECT, ATTENTION_EFFECT, DTYPE_EFFECT = (0.0, 0.1, -0.2, -0.3), (0.0, -0.25, -0.1), (0.0, 0.5)
PEAK_MIB = (1000.0, 1010.0, 700.0, 800.0)
POINTS = list(itertools.product(range(4), range(3), range(2)))


def candidate_at(cache: int, attention: int, dtype: int) -> Candidate:
    choice = CacheChoice.parse(CACHES[cache])
    return Candidate(
        engine="fake",
        cache=choice.strategy,
        cache_params=choice.params,
        attention=ATTENTIONS[attention],
        dtype=DTYPES[dtype],
    )


SPACE = [candidate_at(*point) for point in POINTS]
BEST = candidate_at(1, 0, 1)
"""Static, SDPA, bfloat16: the best value on every axis of speed."""


def metrics_at(cache: int, attention: int, dtype: int) -> Metrics:
    speed = math.exp(CACHE_EFFECT[cache] + ATTENTION_EFFECT[attention] + DTYPE_EFFECT[dtype])
    itl = 20.0 / speed
    return Metrics(
        ttft_ms=400.0 / speed,
        itl_p50_ms=itl,
        itl_p95_ms=itl,
        itl_p99_ms=itl,
        decode_tok_s=50.0 * speed,
        peak_mib=PEAK_MIB[cache],
    )


METRICS = {candidate.candidate_id: metrics_at(*point) for candidate, point in zip(SPACE, POINTS, strict=True)}
