"""The anchor names all that it rests on, and measures a rate above nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from kvray.candidate import DeviceType, DType
from kvray.check.watch import anchor
from kvray.check.watch.anchor import measure_anchor, measure_cpu
from kvray.forecast.hardware import Hardware
from kvray.testing.fake import FakeAdapter


@pytest.mark.parametrize("threads", [1, 3])
def test_the_cpus_anchor_rests_on_numpy_alone(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchor, "_STRETCH_S", 0.002)
    monkeypatch.setattr(anchor, "_COPIED_BYTES", 2**16)
    found = measure_cpu(threads)
    assert found.anchor == f"CPU, {threads} thread{'s' * (threads > 1)}, NumPy {np.__version__}"
    assert found.copy_gb_s > 0
    assert found.matmul_gflop_s > 0


class OnGpu(FakeAdapter):
    """An engine that reaches a GPU, with made-up rates."""

    measures_hardware = True
    rates: Mapping[DType, float] = {DType.FLOAT32: 2e12, DType.FLOAT16: 5e12}

    def measure_hardware(self, device: DeviceType, threads: int | None) -> Hardware | None:
        assert (device, threads) == (DeviceType.CUDA, None)
        return Hardware(
            device=device, copy_bytes_s=1e12, matmul_flops_s=self.rates, stream_bytes_s={}, layer_s=0, step_s=0
        )


def test_a_gpus_anchor_is_measured_by_the_engine_and_named_by_its_libraries() -> None:
    found = measure_anchor(DeviceType.CUDA, OnGpu(), None)
    assert found is not None
    assert (found.copy_gb_s, found.matmul_gflop_s) == (1000.0, 5000.0)
    assert found.anchor.startswith("GPU by ")


def test_an_engine_that_cannot_measure_leaves_no_anchor_on_a_gpu() -> None:
    assert measure_anchor(DeviceType.CUDA, FakeAdapter(), None) is None
