"""What the search's model expects to keep the limits."""

from __future__ import annotations

import numpy as np
import pytest

from kvray.analysis.aggregate import Metrics
from kvray.analysis.metric_models import Measured, _full_length_logs, _may_keep_limits
from kvray.workload import Limits


def test_a_limit_of_memory_is_meant_for_each_gpu_of_a_candidate() -> None:
    peaks = -np.log([[900.0, 900.0, 2100.0]])
    metrics = [np.zeros_like(peaks), np.zeros_like(peaks), peaks]
    keeps = _may_keep_limits(metrics, np.ones(3), np.array([1.0, 2.0, 4.0]), Limits(max_peak_mib=500.0))
    assert keeps.tolist() == [[False, True, False]]


def test_a_first_rung_is_moved_by_what_its_own_engine_showed() -> None:
    def metrics(decode_tok_s: float) -> Metrics:
        return Metrics(
            ttft_ms=1.0, itl_p50_ms=1.0, itl_p95_ms=1.0, itl_p99_ms=1.0, decode_tok_s=decode_tok_s, peak_mib=1.0
        )

    def complete(index: int, share: float) -> Measured:
        return Measured(index=index, rung=1, metrics=metrics(100.0 * share), first=metrics(100.0))

    first_only = [Measured(index=index, rung=0, metrics=metrics(100.0), first=metrics(100.0)) for index in (2, 3, 4)]
    beyond = [
        complete(0, 0.5),
        complete(0, 0.5),
        complete(0, 0.5),
        complete(1, 0.9),
        complete(1, 0.9),
        complete(1, 0.9),
    ]
    logs = _full_length_logs([*beyond, *first_only], np.array([0, 0, 0, 1, 1, 1, 0, 1, 2]))

    assert np.exp(logs[6:8, 1]) == pytest.approx([50.0, 90.0])
    assert np.exp(logs[8, 1]) == pytest.approx(100.0 * (0.5 * 0.9) ** 0.5), "an engine that showed nothing"
