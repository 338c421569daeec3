"""What the adapter offers on which device."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvray.candidate import CompileMode, DeviceType, DType
from kvray.engines.base import DeviceFacts, ModelInfo
from kvray.engines.transformers import TransformersAdapter
from kvray.space.constraints import SpaceFacts
from kvray.workload import get_profile

CPU = DeviceFacts(device=DeviceType.CPU, device_name="a CPU")
AMPERE = DeviceFacts(device=DeviceType.CUDA, device_name="a GPU", gpu_count=1, compute_capability=(8, 0))
TURING = DeviceFacts(device=DeviceType.CUDA, device_name="an old GPU", gpu_count=1, compute_capability=(7, 5))
ADAPTER = TransformersAdapter()


def model(dtype: DType = DType.BFLOAT16) -> ModelInfo:
    return ModelInfo(model_id="o/m", revision="r", architecture="A", max_context=4096, native_dtype=dtype)


def obstacles(device: DeviceFacts) -> dict[tuple[str, str], str]:
    return {(entry.axis, entry.value): entry.obstacle for entry in ADAPTER.menu(device) if entry.obstacle}


def test_a_cpu_lacks_the_kernels_and_graphs_of_cuda() -> None:
    assert set(obstacles(CPU)) == {
        ("attention", "sdpa_efficient"),
        ("attention", "sdpa_cudnn"),
        ("compile", "reduce-overhead"),
    }


def test_an_old_gpu_lacks_bfloat16_and_says_why() -> None:
    assert not obstacles(AMPERE)
    assert obstacles(TURING) == {("dtype", "bfloat16"): "needs compute capability 8.0 (Ampere), this GPU has 7.5"}


def test_what_is_slow_or_the_same_on_a_cpu_is_on_request() -> None:
    on_request = {entry.value for entry in ADAPTER.menu(CPU) if entry.on_request}
    assert {"float16", "sdpa_flash"} <= on_request
    assert {entry.value for entry in ADAPTER.menu(AMPERE) if entry.on_request} == {"default", "reduce-overhead"}


def test_the_models_own_dtype_is_always_among_the_axes() -> None:
    axes = ADAPTER.axes(model(DType.FLOAT16), CPU, get_profile("ci-micro"), compile=False)
    assert DType.FLOAT16 in axes.dtypes
    assert DType.FLOAT16 not in ADAPTER.axes(model(), CPU, get_profile("ci-micro"), compile=False).dtypes


def test_compiling_is_added_when_asked_for_and_only_with_a_static_cache() -> None:
    profile = get_profile("ci-micro")
    assert ADAPTER.axes(model(), CPU, profile, compile=False).compiles == (CompileMode.OFF,)
    assert ADAPTER.axes(model(), CPU, profile, compile=True).compiles == (CompileMode.OFF, CompileMode.DEFAULT)
    (rule,) = ADAPTER.rules()
    facts = SpaceFacts(device=DeviceType.CPU, dtypes=frozenset(DType))
    baseline = ADAPTER.baseline(model(), CPU, batch_size=2)
    compiled = type(baseline).from_dict({**baseline.to_dict(), "compile": "default"})
    assert rule.check(baseline, facts) is None
    assert "only with a static cache" in str(rule.check(compiled, facts))
    assert rule.check(type(baseline).from_dict({**compiled.to_dict(), "cache": "static"}), facts) is None


def test_compiled_code_is_kept_apart_by_torch_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path))
    environment = ADAPTER.process_environment()
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        assert environment[name].startswith(str(tmp_path / "compiled" / "torch-2."))
