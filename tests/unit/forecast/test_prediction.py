from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from forecast_samples import candidate, hardware, llama_8b, small_shape

import kvray.forecast
from kvray.candidate import DeviceType
from kvray.engines.transformers.costs import TransformersCosts
from kvray.forecast.memory import MIB
from kvray.forecast.prediction import does_not_fit, forecast, longest_context
from kvray.workload import Cell, WorkloadProfile, create_custom_profile

CPU, CUDA = DeviceType.CPU, DeviceType.CUDA
LLAMA_8B, SMALL = TransformersCosts(llama_8b()), TransformersCosts(small_shape())


def profile(*contexts: int, outputs: tuple[int, ...] = (64,)) -> WorkloadProfile:
    return create_custom_profile(
        "p",
        context_lengths=contexts,
        output_lengths=outputs,
        weight_ttft=0.4,
        weight_throughput=0.4,
        weight_memory=0.2,
    )


def test_a_forecast_is_the_geometric_mean_over_the_full_cells() -> None:
    made = forecast(SMALL, candidate(), profile(100, 400), CPU, hardware())
    first, second = made.cells
    assert [one.cell for one in made.cells] == [Cell(100, 64, 1), Cell(400, 64, 1)]
    assert made.ttft_ms == pytest.approx(math.sqrt((first.ttft_ms or 0) * (second.ttft_ms or 0)))
    assert made.decode_tok_s == pytest.approx(math.sqrt((first.decode_tok_s or 0) * (second.decode_tok_s or 0)))
    assert made.peak_mib == pytest.approx(math.sqrt(first.peak_mib * second.peak_mib))
    assert made.highest_peak_mib == second.peak_mib


def test_at_the_first_rung_its_own_short_cells_are_compared() -> None:
    made = forecast(SMALL, candidate(), profile(100, 400), CPU, hardware())
    assert [one.cell for one in made.at_rung(0).cells] == [Cell(100, 16, 1), Cell(400, 16, 1)]
    assert made.at_rung(1) == made.at_rung(2) == made


def test_without_a_measured_device_memory_is_forecast_and_seconds_are_not() -> None:
    made = forecast(LLAMA_8B, candidate(), profile(2048), CUDA)
    assert (made.ttft_ms, made.decode_tok_s, made.roofline_share(20.0)) == (None, None, None)
    assert made.peak_mib == pytest.approx(LLAMA_8B.memory(candidate(), Cell(2048, 64, 1), CUDA).peak / MIB)


def test_on_a_cpu_the_peak_is_the_resident_set_with_the_libraries() -> None:
    bare = forecast(SMALL, candidate(), profile(100), CPU)
    assert forecast(SMALL, candidate(), profile(100), CPU, hardware(resident_mib=400.0)).peak_mib == (
        pytest.approx(bare.peak_mib + 400.0)
    )


def test_the_share_of_the_roofline_is_measured_over_ideal_speed() -> None:
    made = forecast(SMALL, candidate(), profile(100, 400), CPU, hardware())
    ideals = [one.ideal_decode_tok_s or 0 for one in made.cells]
    assert made.roofline_share(math.sqrt(ideals[0] * ideals[1]) / 2) == pytest.approx(0.5)


def test_what_needs_more_than_the_free_memory_less_a_margin_does_not_fit_and_the_numbers_are_told() -> None:
    made = forecast(LLAMA_8B, candidate(), profile(2048, 8192), CUDA)
    peak = made.highest_peak_mib
    assert does_not_fit(made, None, peak / 0.97 + 1) is None
    assert does_not_fit(made, None, None) is None
    reason = does_not_fit(made, None, 16_000.0)
    assert reason == (
        f"needs {peak:,.0f} MiB for 8192→64 by forecast, but only 15,520 MiB can be used (16,000 MiB free, less 3 %)"
    )


def test_a_candidate_spread_over_gpus_needs_its_share_of_each_and_what_each_process_needs_beside_it() -> None:
    gpu = hardware(device=CUDA, resident_mib=500.0)
    one, two = (forecast(LLAMA_8B, candidate(parallelism=gpus), profile(2048), CUDA, gpu) for gpus in (1, 2))
    assert one.highest_peak_mib == two.highest_peak_mib
    free = (two.highest_peak_mib / 2 + 500.0) / 0.97 + 1
    assert does_not_fit(one, gpu, free) is not None
    assert does_not_fit(two, gpu, free) is None
    reason = does_not_fit(two, gpu, free - 2)
    assert reason is not None
    assert reason.startswith(f"needs {two.highest_peak_mib / 2 + 500:,.0f} MiB on each of 2 GPUs for 2048→64")


def test_on_cuda_the_process_needs_memory_beside_the_allocator() -> None:
    gpu = hardware(device=CUDA, resident_mib=500.0)
    made = forecast(LLAMA_8B, candidate(), profile(2048), CUDA, gpu)
    free = made.highest_peak_mib / 0.97 + 1
    assert does_not_fit(made, None, free) is None
    assert does_not_fit(made, gpu, free) is not None


def test_the_longest_context_is_the_last_that_fits() -> None:
    tokens = longest_context(LLAMA_8B, candidate(), output_tokens=64, device=CUDA, hardware=None, free_mib=24_000.0)

    def peak_mib(context: int) -> float:
        return LLAMA_8B.memory(candidate(), Cell(context, 64, 1), CUDA).peak / MIB

    assert peak_mib(tokens) <= 24_000 * 0.97 < peak_mib(tokens + 1)


def test_where_the_weights_do_not_fit_no_context_does() -> None:
    asked = {"output_tokens": 64, "device": CUDA, "hardware": None}
    assert longest_context(LLAMA_8B, candidate(), **asked, free_mib=8000.0) == 0  # type: ignore[arg-type]


def test_what_every_engine_shares_knows_no_cache_and_no_kernel() -> None:
    for path in Path(kvray.forecast.__path__[0]).glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"CacheStrategy|AttentionBackend|[Tt]ransformers", text), path.name
