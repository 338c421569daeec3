"""Shapes of well-known models, and a device with round rates."""

from __future__ import annotations

from typing import Any

from kvray.candidate import AttentionBackend, CacheChoice, Candidate, DeviceType, DType
from kvray.forecast.hardware import Hardware
from kvray.forecast.shape import LayerShape, ModelShape


def llama_8b(**changes: Any) -> ModelShape:
    """Llama-3.1-8B: 32 layers, 32 heads over 8 of keys and values, 128 wide."""
    values: dict[str, Any] = {
        "total_parameters": 8_030_261_248,
        "lookup_parameters": 128_256 * 4096,
        "vocab": 128_256,
        "hidden": 4096,
        "intermediate": 14_336,
        "heads": 32,
        "layers": (LayerShape(kv_heads=8, key_dim=128, value_dim=128),) * 32,
    }
    return ModelShape(**{**values, **changes})


def small_shape(**changes: Any) -> ModelShape:
    """Two layers with round numbers: 1,000 parameters that are multiplied, 100 of them the head's."""
    values: dict[str, Any] = {
        "total_parameters": 1000,
        "lookup_parameters": 0,
        "vocab": 10,
        "hidden": 10,
        "intermediate": 40,
        "heads": 2,
        "layers": (LayerShape(kv_heads=1, key_dim=5, value_dim=5),) * 2,
    }
    return ModelShape(**{**values, **changes})


def hardware(**changes: Any) -> Hardware:
    """Copies 1000 bytes a second, multiplies 1000 floats; the library itself takes no time."""
    values: dict[str, Any] = {
        "device": DeviceType.CPU,
        "copy_bytes_s": 1000.0,
        "matmul_flops_s": dict.fromkeys(DType, 1000.0),
        "stream_bytes_s": dict.fromkeys(DType, 1000.0),
        "layer_s": 0.0,
        "step_s": 0.0,
    }
    return Hardware(**{**values, **changes})


def candidate(cache: str = "dynamic", attention: str = "sdpa", dtype: str = "bfloat16", **more: Any) -> Candidate:
    choice = CacheChoice.parse(cache)
    return Candidate(
        engine="transformers",
        cache=choice.strategy,
        cache_params=choice.params,
        attention=AttentionBackend(attention),
        dtype=DType(dtype),
        **more,
    )
