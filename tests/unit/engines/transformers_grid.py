"""Candidates, shapes and cells whose forecasts stand in `assets/transformers_forecasts.json`, as they were recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from forecast_samples import candidate, hardware, llama_8b, small_shape

from kvray.candidate import Candidate, CompileMode, DeviceType, DType
from kvray.forecast.shape import LayerShape, ModelShape
from kvray.workload import Cell

RECORDED = Path(__file__).parents[2] / "assets" / "transformers_forecasts.json"
CELLS = (Cell(100, 28, 2), Cell(4096, 512, 1))
FREE_MIB = 24_000.0
OUTPUT_TOKENS = 64
_FULL, _WINDOWED = (LayerShape(kv_heads=4, key_dim=64, value_dim=64, window=window) for window in (None, 512))
SHAPES: dict[str, ModelShape] = {
    "llama-8b": llama_8b(),
    "windows": small_shape(heads=8, hidden=512, intermediate=1536, vocab=32_000, layers=(_FULL, _WINDOWED) * 3),
    "latent": small_shape(
        heads=8,
        layers=(LayerShape(kv_heads=1, key_dim=576, value_dim=64, expanded_key_dim=192, expanded_value_dim=128),) * 4,
    ),
    "experts and states": replace(
        llama_8b(layers=(_FULL, LayerShape(state_elements=65_536)) * 4),
        expert_parameters=6_000_000_000,
        experts=64,
        experts_per_token=8,
    ),
}
CANDIDATES: tuple[Candidate, ...] = (
    candidate(),
    candidate(dtype="float32"),
    candidate("static", "eager"),
    candidate("dynamic", "sdpa_math", "float16"),
    candidate("static", compile=CompileMode.DEFAULT),
    candidate("static(max_cache_len=8000)"),
    candidate("sliding_window(window=256,sinks=4)"),
    candidate("quantized(backend=hqq,nbits=4)"),
    candidate("quantized(backend=quanto,nbits=2,residual_length=64)"),
    candidate("quantized(backend=fp8)", "eager", "float32"),
    candidate("offloaded", batch_size=4),
    candidate("offloaded_static"),
    candidate("paged"),
    candidate(prefill_chunk=512),
    candidate("dynamic", "eager", prefill_chunk=32),
    candidate(weights_limit_mib=8000),
)
DEVICES = {
    DeviceType.CPU: hardware(
        copy_bytes_s=9e9,
        matmul_flops_s=dict.fromkeys(DType, 2e11),
        stream_bytes_s=dict.fromkeys(DType, 1.2e10),
        layer_s=1e-4,
        step_s=5e-4,
        resident_mib=400.0,
    ),
    DeviceType.CUDA: hardware(
        device=DeviceType.CUDA,
        copy_bytes_s=1.5e12,
        matmul_flops_s=dict.fromkeys(DType, 5e14),
        stream_bytes_s=dict.fromkeys(DType, 2e12),
        layer_s=8e-5,
        step_s=3e-4,
        to_device_bytes_s=2.5e10,
        resident_mib=500.0,
    ),
}


def grid() -> Iterator[tuple[str, ModelShape, Candidate, DeviceType]]:
    """Name and shape of a model, candidate and device: each combination once."""
    for name, shape in SHAPES.items():
        for one in CANDIDATES:
            for device in DEVICES:
                yield name, shape, one, device


def recorded() -> dict[str, list[list[float]]]:
    """By `key_of`, for each of `CELLS` the bytes of weights, cache and transients, and the seconds of prefill, decode
    step and ideal step; then the longest context in `FREE_MIB`."""
    values: dict[str, list[list[float]]] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return values


def key_of(name: str, one: Candidate, device: DeviceType) -> str:
    """Names a combination in the file; a label does not tell every field."""
    return f"{name} {one.candidate_id} {device}"
