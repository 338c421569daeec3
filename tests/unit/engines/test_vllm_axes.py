"""What can be chosen in vLLM, and what a request comes to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, CompileMode, DeviceType, DType
from kvray.engines.base import DeviceFacts, ModelInfo
from kvray.engines.vllm import VllmAdapter, axes
from kvray.engines.vllm.rules import rules
from kvray.space.axis import AxisRequest, canonical_form, with_settings
from kvray.space.constraints import SpaceFacts, first_objection
from kvray.workload import create_custom_profile

CPU = DeviceFacts(device=DeviceType.CPU, device_name="a CPU")
AMPERE = DeviceFacts(device=DeviceType.CUDA, device_name="a GPU", gpu_count=4, compute_capability=(8, 0))
HOPPER = replace(AMPERE, compute_capability=(9, 0))
MODEL = ModelInfo(model_id="m", revision="1", architecture="Llama", max_context=4096, native_dtype=DType.FLOAT32)
PROFILE = create_custom_profile(
    "own", context_lengths=(128, 1024), output_lengths=(16,), weight_ttft=0.4, weight_throughput=0.4, weight_memory=0.2
)
CONFIG = {"num_attention_heads": 8, "hidden_size": 512}


def baseline(device: DeviceFacts = CPU) -> Candidate:
    return VllmAdapter().baseline(MODEL, device, batch_size=1)


def obstacle(axis: str, value: str, device: DeviceFacts) -> str | None:
    return next(line.obstacle for line in VllmAdapter().menu(device) if (line.axis, line.value) == (axis, value))


def canonical(candidate: Candidate, device: DeviceFacts = CPU) -> Candidate:
    return canonical_form(candidate, VllmAdapter().axes(device), PROFILE)


def objection(candidate: Candidate, config: dict[str, int] = CONFIG, device: DeviceType = DeviceType.CPU) -> str | None:
    facts = SpaceFacts(device=device, dtypes=frozenset(DType))
    return first_objection(candidate, facts, rules(config, PROFILE))


def test_the_baseline_is_what_the_server_does_by_itself() -> None:
    one = baseline()
    assert (one.cache, one.attention, one.compile) == (
        CacheStrategy.PAGED,
        AttentionBackend.FLASH,
        CompileMode.DEFAULT,
    )
    assert one.dtype is DType.BFLOAT16, "vLLM never loads 32 bits by itself"
    assert one.settings == ()
    assert objection(one) is None


@pytest.mark.parametrize(
    ("native", "capability", "loaded"),
    [
        (DType.FLOAT16, (9, 0), DType.FLOAT16),
        (DType.BFLOAT16, (9, 0), DType.BFLOAT16),
        (DType.FLOAT32, (9, 0), DType.BFLOAT16),
        (DType.BFLOAT16, (7, 5), DType.FLOAT16),
    ],
)
def test_the_baseline_has_16_bits(native: DType, capability: tuple[int, int], loaded: DType) -> None:
    model, device = replace(MODEL, native_dtype=native), replace(AMPERE, compute_capability=capability)
    assert VllmAdapter().baseline(model, device, batch_size=1).dtype is loaded


@pytest.mark.parametrize(
    ("axis", "value"),
    [
        ("kv_cache_dtype", "nvfp4"),
        ("attention_backend", "FLASHINFER"),
        ("cudagraph_mode", "FULL"),
        ("kv_offloading_size", "GiB"),
        ("block_size", "16"),
        ("compile", "reduce-overhead"),
    ],
)
def test_what_a_cpu_lacks_is_on_the_menu_with_the_reason(axis: str, value: str) -> None:
    assert obstacle(axis, value, CPU)


def test_8_bit_keys_and_values_need_what_the_kernels_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(axes, "cpu_flags", lambda: frozenset({"avx2"}))
    assert "AVX-512" in str(obstacle("kv_cache_dtype", "fp8", CPU))
    monkeypatch.setattr(axes, "cpu_flags", lambda: frozenset({"avx2", "avx512f"}))
    assert obstacle("kv_cache_dtype", "fp8", CPU) is None
    assert "8.9" in str(obstacle("kv_cache_dtype", "fp8", AMPERE))
    assert obstacle("kv_cache_dtype", "fp8", HOPPER) is None


def test_what_changes_nothing_is_not_set() -> None:
    asked: dict[str, AxisRequest] = {
        "kv_cache_dtype": "auto",
        "block_size": 128,
        "attention_backend": "CPU_ATTN",
        "enable_prefix_caching": True,
        "optimization_level": 2,
        "omp_threads_bind": "auto",
    }
    assert canonical(with_settings(baseline(), asked)) == baseline()
    assert canonical(with_settings(baseline(AMPERE), {"block_size": 16}), AMPERE) == baseline(AMPERE)


def test_without_compilation_there_is_no_level_and_no_graph() -> None:
    eager = replace(baseline(), compile=CompileMode.OFF)
    assert canonical(with_settings(eager, {"optimization_level": 3, "cudagraph_mode": "FULL"})) == eager


def test_the_cache_agrees_with_the_type_of_keys_and_values() -> None:
    fp8 = canonical(with_settings(baseline(), {"kv_cache_dtype": "fp8_e4m3"}))
    assert (fp8.cache, fp8.setting("kv_cache_dtype")) == (CacheStrategy.QUANTIZED, "fp8")
    assert objection(fp8) is None
    assert canonical(replace(baseline(), cache=CacheStrategy.QUANTIZED)) == baseline()
    assert "kv_cache_dtype" in str(objection(replace(baseline(), cache=CacheStrategy.DYNAMIC)))


def test_attention_is_vllms_own() -> None:
    """A sweep of several engines may be narrowed to what only another one has."""
    other = replace(baseline(), attention=AttentionBackend.SDPA)
    assert "attention_backend" in str(objection(other))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_num_batched_tokens": 4, "max_num_seqs": 8}, "each sequence needs a token"),
        ({"max_num_batched_tokens": 512, "enable_chunked_prefill": False}, "longest sequence of 1040"),
        ({"tile": 4}, "no axis tile"),
        ({"block_size": 48}, "multiples of 32 tokens, 48 is none"),
    ],
)
def test_what_vllm_refuses_is_known_before_a_trial(settings: dict[str, int], reason: str) -> None:
    assert reason in str(objection(with_settings(baseline(), settings)))


def test_heads_that_no_kernel_takes_and_that_cannot_be_divided_are_refused() -> None:
    small = {"num_attention_heads": 4, "hidden_size": 64}
    assert "have 16" in str(objection(baseline(), small))
    assert objection(baseline(), small, DeviceType.CUDA) is None
    assert objection(baseline(), {**small, "kv_lora_rank": 4}) is None, "latent attention has other kernels"
    assert "3 GPUs" in str(objection(replace(baseline(), parallelism=3), device=DeviceType.CUDA))


def test_the_default_space_takes_each_axis_by_itself_and_every_number_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(axes, "cpu_flags", lambda: frozenset({"avx512f"}))
    on_cpu = VllmAdapter().default_space(MODEL, CPU, PROFILE)
    assert sum(block.points for block in on_cpu) == 8
    assert {name for block in on_cpu for name in block.settings} == {
        *("kv_cache_dtype", "block_size", "enable_prefix_caching", "max_num_batched_tokens", "omp_threads_bind"),
    }
    on_gpus = VllmAdapter().default_space(MODEL, HOPPER, PROFILE)
    assert [block.parallelisms for block in on_gpus][-2:] == [(2,), (4,)]
    assert "FLASHINFER" in {value for block in on_gpus for value in block.values_of("attention_backend")}
