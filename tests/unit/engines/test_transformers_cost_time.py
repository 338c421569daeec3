"""Seconds, worked out by hand on a device with round rates."""

from __future__ import annotations

import pytest
from forecast_samples import candidate, hardware, llama_8b, small_shape

from kvray.candidate import Candidate, CompileMode, DeviceType, DType
from kvray.engines.transformers.cost_time import decode_step_s, least_read_bytes, prefill_flops, prefill_s
from kvray.forecast.hardware import Hardware
from kvray.forecast.roofline import copy_s
from kvray.forecast.shape import LayerShape, ModelShape
from kvray.workload import Cell

CELL = Cell(100, 20, 2)
FAST = {"matmul_flops_s": dict.fromkeys(DType, 1e12), "stream_bytes_s": dict.fromkeys(DType, 1e12)}
"""Only copies take time."""


def ideal_step_s(shape: ModelShape, one: Candidate, cell: Cell, device: Hardware) -> float:
    return copy_s(least_read_bytes(shape, one, cell), device)


def test_reading_a_prompt_costs_two_operations_per_parameter_and_token_and_the_head_for_the_last_alone() -> None:
    shape = small_shape(layers=())
    assert prefill_flops(shape, candidate(), CELL) == 2 * (200 * 900 + 2 * 100)


def test_a_causal_kernel_leaves_half_of_attention_out() -> None:
    nothing_else = prefill_flops(small_shape(layers=()), candidate(), CELL)
    whole = 2 * 2 * 2 * 2 * 100**2 * 10  # layers × two operations × rows × heads × pairs × elements
    assert prefill_flops(small_shape(), candidate(attention="eager"), CELL) - nothing_else == whole
    assert prefill_flops(small_shape(), candidate(), CELL) - nothing_else == whole / 2


def test_a_long_prompt_is_bound_by_multiplying_and_a_short_one_by_reading_the_weights() -> None:
    shape, copies = small_shape(layers=()), {"copy_bytes_s": 1e12}
    long_s = prefill_s(shape, candidate(), CELL, hardware(**copies))
    assert long_s == pytest.approx(prefill_flops(shape, candidate(), CELL) / 1000)
    slow = hardware(**copies, stream_bytes_s=dict.fromkeys(DType, 1.0))
    assert prefill_s(shape, candidate(), Cell(1, 20, 1), slow) == pytest.approx(2000)
    in_two = candidate(prefill_chunk=1)
    assert prefill_s(shape, in_two, Cell(2, 20, 1), slow) == pytest.approx(4000)


def test_decoding_reads_every_weight_once_for_the_whole_batch() -> None:
    shape = small_shape(layers=())
    device = hardware(matmul_flops_s=dict.fromkeys(DType, 1e12))
    assert decode_step_s(shape, candidate(), Cell(100, 20, 1), device) == pytest.approx(2.0)
    assert decode_step_s(shape, candidate(), Cell(100, 20, 64), device) == pytest.approx(2.0)
    assert decode_step_s(shape, candidate(dtype="float32"), Cell(100, 20, 1), device) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("cache", "passes"),
    [
        ("dynamic", 2 + 1),  # copied, and read
        ("static", 1 + 2 * 2),  # read, written out for both heads of the query, read again
        ("quantized(backend=fp8)", 8 + 1),
    ],
)
def test_each_cache_is_gone_over_as_often_as_its_code_does(cache: str, passes: int) -> None:
    tokens = 120 if cache == "static" else 110
    kept = 2 * 2 * 10 * tokens * 2  # layers × rows × elements × tokens × bytes
    device = hardware(**FAST)
    assert decode_step_s(small_shape(), candidate(cache), CELL, device) == pytest.approx(kept * passes / 1000)


def test_more_heads_of_keys_and_values_spare_the_writing_out() -> None:
    equal = small_shape(layers=(LayerShape(kv_heads=2, key_dim=5, value_dim=5),))
    device = hardware(**FAST)
    assert decode_step_s(equal, candidate("static"), CELL, device) == pytest.approx(2 * 20 * 120 * 2 / 1000)


def test_a_window_bounds_what_decoding_reads() -> None:
    device = hardware(**FAST)
    windowed = small_shape(layers=(LayerShape(kv_heads=1, key_dim=5, value_dim=5, window=33),) * 2)
    assert decode_step_s(windowed, candidate(), CELL, device) == pytest.approx(2 * 2 * 10 * 32 * 2 * 5 / 1000)


def test_an_offloaded_cache_waits_for_the_copy_from_host_memory_and_back() -> None:
    device = hardware(**{**FAST, "copy_bytes_s": 1e12}, device=DeviceType.CUDA, to_device_bytes_s=10.0)
    kept = 2 * 2 * 10 * 110 * 2
    assert decode_step_s(small_shape(), candidate("offloaded"), CELL, device) == pytest.approx(2 * kept / 10)


def test_weights_in_host_memory_come_over_for_every_token() -> None:
    device = hardware(device=DeviceType.CUDA, to_device_bytes_s=1e6)
    free, limited = candidate(), candidate(weights_limit_mib=8000)
    more_s = (decode_step_s(llama_8b(), limited, CELL, device) or 0) - (
        decode_step_s(llama_8b(), free, CELL, device) or 0
    )
    assert more_s == pytest.approx((16_060_522_496 - 8000 * 2**20) / 1e6)


def test_the_library_s_own_time_counts_per_layer_unless_the_step_is_compiled() -> None:
    device = hardware(**{**FAST, "copy_bytes_s": 1e12}, layer_s=3.0, step_s=1.0)
    assert decode_step_s(small_shape(), candidate("static"), CELL, device) == pytest.approx(7.0)
    compiled = candidate("static", compile=CompileMode.DEFAULT)
    assert decode_step_s(small_shape(), compiled, CELL, device) == pytest.approx(0.0, abs=1e-3)


def test_the_ideal_step_reads_weights_and_cache_once_as_they_are_stored() -> None:
    kept = 2 * 2 * 10 * 110
    assert ideal_step_s(small_shape(), candidate(), CELL, hardware()) == pytest.approx((2000 + kept * 2) / 1000)
    assert ideal_step_s(small_shape(), candidate("static"), CELL, hardware()) == pytest.approx((2000 + kept * 2) / 1000)
    packed = candidate("quantized(backend=fp8)")
    assert ideal_step_s(small_shape(), packed, CELL, hardware()) == pytest.approx((2000 + kept) / 1000)


def test_a_dtype_whose_rates_are_not_known_has_no_seconds() -> None:
    device = hardware(matmul_flops_s={DType.FLOAT32: 1.0})
    assert prefill_s(small_shape(), candidate(), CELL, device) is None
    assert decode_step_s(small_shape(), candidate(), CELL, device) is None


LATENT = LayerShape(kv_heads=1, key_dim=8, value_dim=2, expanded_key_dim=5, expanded_value_dim=3)
"""A latent of 8 and a rotated key of 2, from which both heads get a key of 3 + 2 and a value of 3."""


def test_latents_are_expanded_for_every_head_and_all_tokens_at_every_step() -> None:
    shape = small_shape(layers=(LATENT,))
    slow = hardware(copy_bytes_s=1e12, stream_bytes_s=dict.fromkeys(DType, 1e12))
    multiplied = 2 * 2 * 1000 + 2 * 110 * 2 * 8 * 2 * (3 + 3)  # parameters; rows × tokens × latent × heads × elements
    assert decode_step_s(shape, candidate(), CELL, slow) == pytest.approx(multiplied / 1000)
    kept, expanded = 2 * 110 * 10 * 2, 2 * 110 * 2 * (3 + 3 + 5) * 2  # and what is written: keys twice
    assert decode_step_s(shape, candidate(), CELL, hardware(**FAST)) == pytest.approx((3 * kept + 2 * expanded) / 1000)


def test_each_further_piece_of_a_prompt_expands_the_latents_before_it_again() -> None:
    shape = small_shape(layers=(LATENT,))
    whole, pieces = (prefill_flops(shape, one, CELL) for one in (candidate(), candidate(prefill_chunk=25)))
    assert pieces - whole == 2 * (25 + 50 + 75) * 2 * 8 * 2 * (3 + 3)


def test_attention_works_on_what_latents_are_expanded_to() -> None:
    nothing_else = prefill_flops(small_shape(layers=()), candidate(), CELL)
    whole = 2 * 2 * 2 * 100**2 * (5 + 3)
    assert prefill_flops(small_shape(layers=(LATENT,)), candidate("dynamic", "eager"), CELL) - nothing_else == whole
