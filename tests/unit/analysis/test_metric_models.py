"""What the search's model expects to keep the limits."""

from __future__ import annotations

import numpy as np

from kvray.analysis.metric_models import _may_keep_limits
from kvray.workload import Limits


def test_a_limit_of_memory_is_meant_for_each_gpu_of_a_candidate() -> None:
    peaks = -np.log([[900.0, 900.0, 2100.0]])
    metrics = [np.zeros_like(peaks), np.zeros_like(peaks), peaks]
    keeps = _may_keep_limits(metrics, np.ones(3), np.array([1.0, 2.0, 4.0]), Limits(max_peak_mib=500.0))
    assert keeps.tolist() == [[False, True, False]]
