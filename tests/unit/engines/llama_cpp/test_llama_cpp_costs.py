"""Forecasts of llama.cpp: the sizes of its caches by its own arithmetic, and costs that follow the configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from llama_cpp_samples import candidate

from kvray.candidate import AttentionBackend, Candidate, DeviceType, DType
from kvray.engines.llama_cpp.costs import TYPE_BYTES, LlamaCppCosts
from kvray.engines.llama_cpp.settings import CACHE_TYPES, ContextSettings
from kvray.engines.llama_cpp.sizes import NativeSizes, Sizes
from kvray.forecast.hardware import Hardware
from kvray.forecast.memory import MIB, MemoryNeed
from kvray.forecast.prediction import MARGIN, Forecast, does_not_fit, forecast_cell
from kvray.forecast.shape import LayerShape, ModelShape
from kvray.testing.cost_contract import check_costs
from kvray.workload import Cell

FULL = LayerShape(kv_heads=3, key_dim=64, value_dim=64)
SLIDING = LayerShape(kv_heads=1, key_dim=256, value_dim=256, window=512)
RATES = Hardware(
    device=DeviceType.CPU,
    copy_bytes_s=1e10,
    matmul_flops_s={DType.FLOAT32: 1e11},
    stream_bytes_s={DType.FLOAT32: 1e10},
    layer_s=1e-5,
    step_s=0.0,
)
QUANTIZED: dict[str, Any] = {"type_k": "q8_0", "type_v": "q8_0"}


def costs(*layers: LayerShape, threads: int = 2, native: NativeSizes | None = None) -> LlamaCppCosts:
    shape = ModelShape(
        total_parameters=10_000_000,
        lookup_parameters=0,
        vocab=1000,
        hidden=576,
        intermediate=1536,
        heads=9,
        layers=layers or (FULL,) * 4,
    )
    return LlamaCppCosts(shape, weight_bytes=6_000_000, threads=threads, native=native)


def cache_bytes(one: Candidate, cell: Cell, *layers: LayerShape) -> int:
    return costs(*layers).memory(one, cell, DeviceType.CPU).cache


def test_every_type_of_the_engine_has_a_size() -> None:
    assert set(TYPE_BYTES) == set(CACHE_TYPES)


@pytest.mark.parametrize(
    ("settings", "bytes_per_pair"),
    [({}, 4.0), ({"type_k": "q8_0"}, 2 + 34 / 32), ({"type_k": "q4_0", "type_v": "q5_1"}, 18 / 32 + 24 / 32)],
)
def test_a_cache_has_room_for_rounded_tokens_in_its_types(settings: dict[str, Any], bytes_per_pair: float) -> None:
    assert cache_bytes(candidate(**settings), Cell(512, 32, 1)) == 4 * 3 * 64 * bytes_per_pair * 768
    assert cache_bytes(candidate(**settings), Cell(200, 32, 3)) == 4 * 3 * 64 * bytes_per_pair * 3 * 256


def test_layers_with_a_window_keep_it_and_what_is_worked_on_at_once() -> None:
    cell = Cell(4000, 96, 1)
    each = 2 * 256 * 2
    assert cache_bytes(candidate(), cell, SLIDING) == each * (512 + 512)
    assert cache_bytes(candidate(n_ubatch=64), cell, SLIDING) == each * 768
    assert cache_bytes(candidate(swa_full=True), cell, SLIDING) == each * 4096
    assert cache_bytes(candidate(), Cell(200, 32, 1), SLIDING) == each * 256


@pytest.mark.parametrize(
    "one",
    [
        candidate(),
        candidate(attention=AttentionBackend.EAGER),
        candidate(**QUANTIZED),
        candidate(n_ubatch=16, threads=1),
        candidate(batch_size=4, kv_unified=True),
    ],
)
@pytest.mark.parametrize("layers", [(FULL,) * 2, (FULL, SLIDING)])
def test_costs_are_positive_and_a_longer_prompt_never_lowers_them(
    one: Candidate, layers: tuple[LayerShape, ...]
) -> None:
    cells = [Cell(context, 8, one.batch_size) for context in (1, 24, 255, 256, 400, 600, 5000)]
    told = [forecast_cell(costs(*layers), one, cell, DeviceType.CPU, RATES) for cell in cells]
    check_costs(told, one.label)


def test_what_is_slower_by_its_making_is_forecast_slower() -> None:
    cell, model = Cell(2000, 64, 1), costs()

    def prefill_s(one: Candidate) -> float:
        return model.prefill_s(one, cell, RATES) or 0.0

    def decode_s(one: Candidate) -> float:
        return model.decode_step_s(one, cell, RATES) or 0.0

    usual = candidate()
    assert prefill_s(usual) < prefill_s(candidate(attention=AttentionBackend.EAGER))
    assert prefill_s(usual) < prefill_s(candidate(**QUANTIZED))
    assert prefill_s(usual) < prefill_s(candidate(n_ubatch=16))
    assert prefill_s(usual) < prefill_s(candidate(threads_batch=1))
    assert decode_s(usual) == decode_s(candidate(threads_batch=1, threads=2))
    assert decode_s(usual) < decode_s(candidate(threads=1))


def test_a_gpu_holds_the_layers_that_are_put_there() -> None:
    model, cell = costs(), Cell(500, 8, 1)

    def held(one: Candidate) -> tuple[int, int]:
        need = model.memory(one, cell, DeviceType.CUDA)
        return need.weights, need.cache

    weights, cache = held(candidate())
    assert (weights, cache) == (6_000_000, cache_bytes(candidate(), cell))
    assert held(candidate(n_gpu_layers=99)) == (weights, cache)
    assert held(candidate(n_gpu_layers=2)) == (weights * 2 // 5, round(cache * 2 / 5))
    assert held(candidate(offload_kqv=False)) == (weights, 0)


def test_a_model_that_memory_does_not_hold_is_kept_out_with_the_figures() -> None:
    told = forecast_cell(costs(), candidate(), Cell(100, 8, 1), DeviceType.CPU, RATES)
    reason = does_not_fit(Forecast.of([told]), RATES, told.peak_mib / 2)
    assert reason is not None
    assert reason.startswith(f"needs {told.peak_mib:,.0f} MiB for 100→8 by forecast, but only")


def test_without_rates_memory_alone_is_forecast() -> None:
    told = forecast_cell(costs(), candidate(), Cell(100, 8, 1), DeviceType.CPU, None)
    assert told.ttft_ms is None
    assert told.held_mib * 2**20 == pytest.approx(6_000_000 + 4 * 2 * 3 * 64 * 2 * 256)


class Simulated(NativeSizes):
    """Says what a test has it say."""

    def __init__(self, sizes: Sizes | None) -> None:
        self._told = sizes

    def sizes(self, settings: ContextSettings) -> Sizes | None:
        return self._told


def need(sizes: Sizes | None, device: DeviceType = DeviceType.CPU) -> MemoryNeed:
    return costs(native=Simulated(sizes)).memory(candidate(), Cell(512, 32, 1), device)


SIZES = Sizes(cache_mib=2.25, cache_parts=1, gpu_mib=0.0, host_mib=1.0, copied_bytes=5_000_000, used_bytes=1_000_000)


def test_weights_that_are_rearranged_are_resident_twice_and_fit_where_there_is_room_for_one_copy() -> None:
    plain, twice = need(None), need(SIZES)
    assert (plain.weights, plain.droppable) == (6_000_000, 0)
    assert (twice.weights, twice.droppable) == (7_000_000, 4_000_000), "the table that is embedding and head stays"
    assert twice.peak - twice.transient - twice.cache == 6_000_000 + 5_000_000
    model = costs(native=Simulated(SIZES))
    told = Forecast.of([forecast_cell(model, candidate(), Cell(512, 32, 1), DeviceType.CPU, None)])
    free_mib = (told.highest_peak_mib - 4_000_000 / MIB) / (1 - MARGIN) + 0.01
    assert does_not_fit(told, None, free_mib) is None
    assert does_not_fit(told, None, free_mib - 0.1) is not None


def test_no_more_is_resident_than_llama_cpp_allocates_to_compute() -> None:
    assert need(SIZES).transient == MIB < need(None).transient
    assert need(replace(SIZES, host_mib=1000.0)).transient == need(None).transient


def test_a_gpu_holds_what_llama_cpp_allocates_there() -> None:
    assert need(replace(SIZES, gpu_mib=3.0), DeviceType.CUDA).transient == 3 * MIB
    assert need(SIZES, DeviceType.CUDA).transient == need(None, DeviceType.CUDA).transient, "a build without a GPU"


def test_another_size_of_keys_and_values_than_by_the_formula_is_llama_cpps() -> None:
    assert need(SIZES).cache == need(None).cache
    assert need(replace(SIZES, cache_mib=6.0)).cache == 6 * MIB


def test_a_context_that_no_machine_holds_is_not_simulated() -> None:
    model = costs(native=Simulated(SIZES))
    huge = model.memory(candidate(), Cell(1 << 29, 32, 1), DeviceType.CPU)
    assert huge.cache == cache_bytes(candidate(), Cell(1 << 29, 32, 1))
    assert huge.droppable == 4_000_000
