"""Bytes, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from forecast_samples import candidate, llama_8b, small_shape

from kvray.candidate import Candidate, DeviceType, DType
from kvray.engines.transformers.cost_memory import (
    cache_bytes,
    device_cache_bytes,
    device_weight_bytes,
    memory_need,
    scores_bytes,
    stored_bytes_per_element,
)
from kvray.forecast.memory import MIB, weight_bytes
from kvray.forecast.shape import LayerShape, ModelShape
from kvray.workload import Cell

CELL = Cell(100, 28, 2)
CPU, CUDA = DeviceType.CPU, DeviceType.CUDA


def token_bytes(shape: ModelShape, one: Candidate) -> int:
    """By how much the cache grows with one token of one sequence."""
    return cache_bytes(shape, one, Cell(101, 28, 1)) - cache_bytes(shape, one, Cell(100, 28, 1))


def test_llama_3_1_8b_keeps_131072_bytes_for_a_token_in_16_bits() -> None:
    assert token_bytes(llama_8b(), candidate()) == 131_072
    assert token_bytes(llama_8b(), candidate(dtype="float32")) == 262_144


def test_with_one_head_of_keys_and_values_a_32nd_is_kept_of_what_32_heads_keep() -> None:
    one = llama_8b(layers=(LayerShape(kv_heads=1, key_dim=128, value_dim=128),) * 32)
    many = llama_8b(layers=(LayerShape(kv_heads=32, key_dim=128, value_dim=128),) * 32)
    assert token_bytes(many, candidate()) == 32 * token_bytes(one, candidate()) == 524_288


def test_a_latent_is_kept_once_for_all_heads_and_expanded_beside_it_while_a_layer_attends() -> None:
    plain = LayerShape(kv_heads=1, key_dim=8, value_dim=2)
    latent = replace(plain, expanded_key_dim=5, expanded_value_dim=3)
    plain_need, latent_need = (
        memory_need(small_shape(layers=(layer,)), candidate("static"), Cell(16, 4000, 1), DeviceType.CPU)
        for layer in (plain, latent)
    )
    assert plain_need.cache == latent_need.cache == 4016 * (8 + 2) * 2
    written_out = 4016 * 2 * (8 + 2) * 2  # of the plain one, for both heads of the query
    assert latent_need.transient - plain_need.transient == 4016 * 2 * (3 + 3 + 5) * 2 - written_out


def test_weights_take_their_dtype_s_bytes_and_a_limit_leaves_the_rest_in_host_memory() -> None:
    assert weight_bytes(llama_8b(), DType.BFLOAT16) == 16_060_522_496
    assert device_weight_bytes(llama_8b(), candidate(weights_limit_mib=8000)) == 8000 * MIB
    assert device_weight_bytes(llama_8b(), candidate(weights_limit_mib=20_000)) == 16_060_522_496


@pytest.mark.parametrize(
    ("cache", "tokens"),
    [
        ("dynamic", 127),  # the last token is not fed back
        ("offloaded", 127),
        ("static", 128),
        ("static(max_cache_len=64)", 128),
        ("static(max_cache_len=500)", 500),
        ("sliding_window(window=50,sinks=4)", 50),
        ("sliding_window(window=500,sinks=4)", 127),
        ("paged", (2 + 3) * 256 / 2),  # a page for either sequence, and three spare ones
    ],
)
def test_a_cache_has_room_for_the_tokens_of_its_strategy(cache: str, tokens: float) -> None:
    per_token = 2 * 10 * 2  # layers × elements × bytes
    assert cache_bytes(small_shape(), candidate(cache), CELL) == CELL.batch_size * tokens * per_token


def test_a_layer_with_a_window_keeps_no_more_than_that_in_any_cache() -> None:
    windowed = LayerShape(kv_heads=1, key_dim=5, value_dim=5, window=32)
    shape = small_shape(layers=(windowed, windowed))
    per_token = 2 * 2 * 10 * 2
    assert cache_bytes(shape, candidate(), CELL) == 31 * per_token
    assert cache_bytes(shape, candidate("sliding_window(window=50,sinks=4)"), CELL) == 31 * per_token
    assert cache_bytes(shape, candidate("static"), CELL) == 32 * per_token


def test_a_state_takes_the_same_whatever_the_context() -> None:
    shape = small_shape(layers=(LayerShape(state_elements=300),))
    assert cache_bytes(shape, candidate(), CELL) == cache_bytes(shape, candidate(), Cell(9000, 9, 2)) == 2 * 300 * 2


@pytest.mark.parametrize(
    ("cache", "per_element"),
    [
        ("quantized(backend=hqq,nbits=4)", 0.5 + 2 * 2 / 64),
        ("quantized(backend=hqq,nbits=8,q_group_size=32)", 1 + 2 * 2 / 32),
        ("quantized(backend=hqq,nbits=3)", 0.4 + 2 * 2 / 64),
        ("quantized(backend=quanto,nbits=2)", 0.25 + 2 * 2 / 64),
        ("quantized(backend=fp8)", 1.0),
        ("dynamic", 2.0),
    ],
)
def test_a_quantised_element_takes_its_bits_and_its_share_of_scale_and_zero_point(
    cache: str, per_element: float
) -> None:
    assert stored_bytes_per_element(candidate(cache)) == per_element


def test_a_quantised_cache_leaves_what_follows_the_prompt_as_it_is_until_the_residual_is_full() -> None:
    def held(cache: str, output_tokens: int) -> int:
        return cache_bytes(small_shape(), candidate(cache), Cell(128, output_tokens, 1))

    packed = 0.5 + 2 * 2 / 64
    assert held("quantized(backend=hqq,nbits=4)", 11) == 20 * (128 * packed + 10 * 2)
    assert held("quantized(backend=hqq,nbits=4)", 129) == 20 * 256 * packed
    half_full = held("quantized(backend=hqq,nbits=4,residual_length=4)", 7)
    assert half_full == pytest.approx(20 * (132 * packed + 2 * 2), abs=2)


def test_of_an_offloaded_cache_two_layers_are_on_the_device() -> None:
    offloaded = candidate("offloaded")
    assert device_cache_bytes(llama_8b(), offloaded, CELL) * 16 == cache_bytes(llama_8b(), offloaded, CELL)


def test_attention_that_writes_its_scores_needs_them_for_every_head_and_pair() -> None:
    pairs = 2 * 2 * 100 * 100  # rows × heads × queries × keys
    shape = small_shape()
    assert scores_bytes(shape, candidate(attention="eager", dtype="float32"), CELL, CPU) == pairs * 8
    assert scores_bytes(shape, candidate(attention="eager"), CELL, CUDA) == pairs * 8
    assert scores_bytes(shape, candidate(attention="eager"), CELL, CPU) == pairs * 10
    assert scores_bytes(shape, candidate(attention="sdpa_math"), CELL, CPU) == pairs * 9
    assert scores_bytes(shape, candidate(attention="sdpa"), CELL, CPU) == 0
    in_pieces = candidate(attention="eager", dtype="float32", prefill_chunk=25)
    assert scores_bytes(shape, in_pieces, CELL, CPU) == pairs * 8 / 4


def test_a_prompt_in_pieces_needs_less_beside_weights_and_cache() -> None:
    whole = memory_need(llama_8b(), candidate(), Cell(8192, 64, 1), CUDA)
    pieces = memory_need(llama_8b(), candidate(prefill_chunk=1024), Cell(8192, 64, 1), CUDA)
    assert whole.held == pieces.held
    activations = (4 * 4096 + 3 * 14_336) * 2
    logits = 128_256 * 6
    assert whole.transient == 8192 * activations + logits
    assert pieces.transient < whole.transient / 4


def test_a_prompt_in_pieces_needs_a_mask_and_keys_and_values_written_out_for_every_head() -> None:
    shape = small_shape(intermediate=0, vocab=0)
    pieces = memory_need(shape, candidate(prefill_chunk=50), CELL, CPU)
    mask, activations = 2 * 50 * 100, 3 * 10 * 2 * 50 * 2
    query_and_output, written_out = 2 * 10 * 2 * 50 * 2, 2 * 10 * 2 * 100 * 2
    assert pieces.transient == mask + activations + query_and_output + written_out


def test_a_growing_cache_with_a_window_holds_the_whole_prompt_until_the_next_token() -> None:
    def transient(cache: str, window: int | None) -> int:
        layers = (LayerShape(kv_heads=2, key_dim=5, value_dim=5, window=window),) * 2
        return memory_need(small_shape(layers=layers), candidate(cache), CELL, CPU).transient

    mask, dropped = 2 * 100 * 100, 2 * 2 * 20 * (100 - 31) * 2
    assert transient("dynamic", 32) - transient("dynamic", None) == mask + dropped
    assert transient("static", 32) - transient("static", None) == mask


def test_while_decoding_a_growing_cache_needs_a_layer_twice_and_a_masked_one_every_head_s() -> None:
    shape, cell = small_shape(intermediate=0, hidden=0, vocab=0), Cell(1, 999, 2)
    layer = cell.batch_size * 1000 * 10 * 2
    assert memory_need(shape, candidate(), cell, CPU).transient == layer
    assert memory_need(shape, candidate("static"), cell, CPU).transient == 2 * layer
    assert memory_need(shape, candidate("quantized(backend=fp8)"), cell, CPU).transient == 2 * layer


def test_weights_that_wait_in_host_memory_need_room_for_a_layer_of_them() -> None:
    limited = memory_need(llama_8b(), candidate(weights_limit_mib=8000), CELL, CUDA)
    free = memory_need(llama_8b(), candidate(), CELL, CUDA)
    assert limited.weights == 8000 * MIB
    assert limited.transient - free.transient == 16_060_522_496 // 32
