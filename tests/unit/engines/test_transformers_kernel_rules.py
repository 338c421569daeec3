"""Which of PyTorch's attention kernels run where, and the reason that a user reads where they do not."""

from __future__ import annotations

from typing import Any

import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import ModelInfo, ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.space.constraints import RULES, SpaceFacts, first_objection
from kvray.workload import get_profile

CPU = SpaceFacts(device=DeviceType.CPU, dtypes=frozenset(DType))
GPU = SpaceFacts(device=DeviceType.CUDA, dtypes=frozenset(DType), gpu_count=1)
MODEL = ModelInfo(model_id="o/m", revision="r", architecture="A", max_context=None, native_dtype=DType.FLOAT32)
KERNEL_RULES = TransformersAdapter().rules(ModelRequest(model_id="o/m"), MODEL, get_profile("chat-agent"))


def candidate(**changes: Any) -> Candidate:
    values: dict[str, Any] = {
        "engine": "transformers",
        "cache": CacheStrategy.DYNAMIC,
        "attention": AttentionBackend.SDPA,
        "dtype": DType.FLOAT32,
    }
    return Candidate(**{**values, **changes})


@pytest.mark.parametrize("attention", [AttentionBackend.SDPA_EFFICIENT, AttentionBackend.SDPA_CUDNN])
def test_a_cpu_rejects_the_kernels_that_exist_for_cuda_only(attention: AttentionBackend) -> None:
    kernel = attention.value.removeprefix("sdpa_")
    expected = f"PyTorch has no {kernel} attention kernel for the CPU (kernel-on-device)"
    assert first_objection(candidate(attention=attention), CPU, KERNEL_RULES) == expected
    assert first_objection(candidate(attention=attention, dtype=DType.FLOAT16), GPU, KERNEL_RULES) is None


@pytest.mark.parametrize("attention", [AttentionBackend.SDPA_FLASH, AttentionBackend.SDPA_CUDNN])
def test_half_precision_kernels_reject_float32_on_a_gpu(attention: AttentionBackend) -> None:
    kernel = attention.value.removeprefix("sdpa_")
    expected = f"the CUDA {kernel} kernel takes float16 and bfloat16 only (flash-half-precision)"
    assert first_objection(candidate(attention=attention), GPU, KERNEL_RULES) == expected
    assert first_objection(candidate(attention=attention, dtype=DType.BFLOAT16), GPU, KERNEL_RULES) is None


def test_flash_takes_float32_on_a_cpu() -> None:
    assert first_objection(candidate(attention=AttentionBackend.SDPA_FLASH), CPU, KERNEL_RULES) is None


def test_rules_have_names_of_their_own() -> None:
    names = [rule.name for rule in (*RULES, *KERNEL_RULES)]
    assert len(set(names)) == len(names)
