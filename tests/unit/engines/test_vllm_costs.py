"""Bytes and seconds that are forecast of vLLM: the pool of blocks as vLLM makes it, and the roofline."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvray.candidate import Candidate, CompileMode, DeviceType, DType
from kvray.engines.base import DeviceFacts, ModelInfo
from kvray.engines.vllm import VllmAdapter
from kvray.engines.vllm.costs import VllmCosts
from kvray.forecast.hardware import Hardware
from kvray.forecast.shape import LayerShape, ModelShape
from kvray.space.axis import AxisRequest, with_settings
from kvray.workload import Cell

CELL = Cell(500, 12, 1)
CPU = DeviceFacts(device=DeviceType.CPU, device_name="a CPU")
LAYER = LayerShape(kv_heads=2, key_dim=32, value_dim=32)
SHAPE = ModelShape(
    total_parameters=1_000_000,
    lookup_parameters=0,
    vocab=256,
    hidden=64,
    intermediate=96,
    heads=4,
    layers=(LAYER,) * 6,
)
MODEL = ModelInfo(model_id="m", revision="1", architecture="Llama", max_context=4096, native_dtype=DType.BFLOAT16)
RATES = Hardware(
    device=DeviceType.CUDA,
    copy_bytes_s=1e9,
    matmul_flops_s=dict.fromkeys(DType, 1e12),
    stream_bytes_s=dict.fromkeys(DType, 1e9),
    layer_s=1e-4,
    step_s=1e-3,
)
COSTS = VllmCosts(SHAPE, ("full_attention",) * 6)


def candidate(**settings: AxisRequest) -> Candidate:
    return with_settings(VllmAdapter().baseline(MODEL, CPU, batch_size=1), settings)


def pool(one: Candidate, cell: Cell = CELL, costs: VllmCosts = COSTS) -> int:
    return costs.memory(one, cell, DeviceType.CPU).cache


@pytest.mark.parametrize(
    ("kv_cache_dtype", "bytes_a_head"),
    [
        (None, 64 * 2),
        ("fp8", 64),
        ("fp8_e5m2", 64),
        ("int8_per_token_head", 64 + 2 * 4),
        ("int4_per_token_head", 32 + 2 * 4),
        ("nvfp4", 32 + 4),
    ],
)
def test_a_pool_has_whole_blocks_of_the_type_that_is_asked_for(kv_cache_dtype: str | None, bytes_a_head: int) -> None:
    # 512 tokens fill four blocks of 128; one more is being written, and vLLM keeps one to itself.
    assert pool(candidate(kv_cache_dtype=kv_cache_dtype)) == (4 + 1 + 1) * 128 * 6 * 2 * bytes_a_head


def test_smaller_blocks_round_less_and_every_sequence_has_its_own() -> None:
    assert pool(candidate(block_size=32)) == (16 + 1 + 1) * 32 * 6 * 2 * 128
    assert pool(candidate(), Cell(500, 12, 3)) == (3 * (4 + 1) + 1) * 128 * 6 * 2 * 128


def test_layers_of_two_kinds_take_blocks_of_the_size_of_the_rarest_kind() -> None:
    kinds = ("sliding_attention", "sliding_attention", "full_attention") * 2
    layers = (replace(LAYER, window=64), replace(LAYER, window=64), LAYER) * 2
    mixed = VllmCosts(replace(SHAPE, layers=layers), kinds)
    assert pool(candidate(), costs=mixed) == (3 * (4 + 1) + 1) * 128 * 2 * 2 * 128, "three groups of two layers"


def test_gpus_split_the_heads_and_keep_one_each_at_least() -> None:
    alone, two, eight = (pool(replace(candidate(), parallelism=gpus)) for gpus in (1, 2, 8))
    assert two == alone
    assert eight == 4 * alone


def test_a_step_reads_weights_and_kept_tokens_and_an_8_bit_cache_is_half_of_it() -> None:
    cell = Cell(1000, 10, 4)
    plain, eight = (
        COSTS.least_read_bytes(candidate(), cell),
        COSTS.least_read_bytes(candidate(kv_cache_dtype="fp8"), cell),
    )
    assert plain == 2_000_000 + 4 * 1005 * 6 * 2 * 128
    assert plain - eight == 4 * 1005 * 6 * 2 * 64
    assert COSTS.decode_step_s(candidate(), cell, RATES) == pytest.approx(plain / 1e9 + 1e-3)


def test_without_compilation_every_layer_waits_for_python() -> None:
    cell = Cell(100, 10, 1)
    compiled, eager = (
        COSTS.decode_step_s(replace(candidate(), compile=mode), cell, RATES)
        for mode in (CompileMode.DEFAULT, CompileMode.OFF)
    )
    assert compiled is not None
    assert eager == pytest.approx(compiled + 6 * 1e-4)


def test_a_prompt_in_pieces_reads_the_weights_once_for_each() -> None:
    cell = Cell(1024, 4, 1)
    whole, pieces = (COSTS.prefill_s(candidate(max_num_batched_tokens=tokens), cell, RATES) for tokens in (None, 256))
    uncut = COSTS.prefill_s(candidate(max_num_batched_tokens=256, enable_chunked_prefill=False), cell, RATES)
    assert whole is not None
    assert whole == uncut
    assert pieces is not None
    assert pieces > whole + 2 * 1e-3, "three further steps"


def test_two_gpus_share_the_work() -> None:
    cell = Cell(1000, 10, 1)
    alone, both = (
        COSTS.decode_step_s(replace(candidate(), parallelism=gpus), cell, replace(RATES, step_s=0.0)) for gpus in (1, 2)
    )
    assert alone is not None
    assert both == pytest.approx(alone / 2)
    on_cpu = replace(RATES, device=DeviceType.CPU)
    assert COSTS.decode_step_s(replace(candidate(), parallelism=2), cell, on_cpu) == COSTS.decode_step_s(
        candidate(), cell, on_cpu
    )


def test_what_is_not_known_of_a_dtype_is_not_forecast() -> None:
    unknown = replace(RATES, matmul_flops_s={}, stream_bytes_s={})
    assert COSTS.prefill_s(candidate(), Cell(10, 4, 1), unknown) is None
    assert COSTS.decode_step_s(candidate(), Cell(10, 4, 1), unknown) is None
