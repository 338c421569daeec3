"""From a GGUF header to a `ModelShape`: parameters are counted from its tensors, what a layer keeps from its keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kvray.forecast.shape import LayerShape, ModelShape
from kvray.models.gguf_header import GgufHeader, GgufTensor

_PERIODS: Mapping[str, int] = {
    **dict.fromkeys(("afmoe", "cohere2", "exaone-moe", "exaone4", "llama4", "mellum", "olmo2"), 4),
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "plamo3": 8,
}
"""Architectures of which every n-th layer sees all tokens and the others a window, where the file does not list them.
Source: the calls of `load_swa_pattern` in llama.cpp's models."""
_FULL_FIRST: Mapping[str, int] = dict.fromkeys(("cohere2moe", "laguna", "smallthinker"), 4)
"""The same where the first of n layers sees all tokens."""
_UNKNOWN_KEYS = (
    "attention.key_length_swa",
    "attention.kv_lora_rank",
    "attention.shared_kv_layers",
    "attention.indexer.head_count",
    "full_attention_interval",
    "kda.head_dim",
    "shortconv.l_cache",
    "ssm.state_size",
    "wkv.head_size",
)
"""Keys of models that keep something else than every layer's keys and values of one size. Nothing is said of them: a
wrong size would keep out a candidate that fits."""


def layer_kinds(header: GgufHeader) -> tuple[str, ...]:
    """`full_attention`, `sliding_attention`, `state` for a layer with a state of its own, or `dummy`, by layer."""
    shape = _layers(header)
    return tuple(_kind(layer) for layer in shape or ())


def shape_of(header: GgufHeader) -> ModelShape | None:
    """The sizes of the model; `None` where the header does not tell what a layer keeps."""
    layers = _layers(header)
    heads, width = _highest(header.own("attention.head_count")), header.own("embedding_length")
    if layers is None or not heads or not isinstance(width, int):
        return None
    tensors = header.tensors
    embedding = tensors["token_embd.weight"]
    is_tied = "output.weight" not in tensors
    experts = int(header.own("expert_count") or 0)
    return ModelShape(
        total_parameters=sum(map(_elements, tensors.values())),
        lookup_parameters=0 if is_tied else _elements(embedding),
        expert_parameters=sum(_elements(one) for name, one in tensors.items() if "_exps." in name),
        experts=experts,
        experts_per_token=int(header.own("expert_used_count") or 0) if experts else 0,
        vocab=embedding.shape[-1],
        hidden=width,
        intermediate=max(_highest(header.own("feed_forward_length")), width),
        heads=heads,
        layers=layers,
    )


def _layers(header: GgufHeader) -> tuple[LayerShape, ...] | None:
    count = header.own("block_count")
    if not isinstance(count, int) or any(header.own(key) for key in _UNKNOWN_KEYS):
        return None
    heads = _by_layer(header.own("attention.head_count"), count)
    kv_heads = _by_layer(header.own("attention.head_count_kv"), count) or heads
    if heads is None or kv_heads is None or not max(heads):
        return None
    width = int(header.own("embedding_length"))
    key_dim = int(header.own("attention.key_length") or width // max(heads))
    value_dim = int(header.own("attention.value_length") or width // max(heads))
    windows = _windows(header, count)
    return tuple(
        LayerShape(kv_heads=kv, key_dim=key_dim if kv else 0, value_dim=value_dim if kv else 0, window=window)
        for kv, window in zip(kv_heads, windows, strict=True)
    )


def _windows(header: GgufHeader, layers: int) -> list[int | None]:
    window = header.own("attention.sliding_window")
    if not isinstance(window, int) or window <= 0:
        return [None] * layers
    pattern = header.own("attention.sliding_window_pattern")
    if isinstance(pattern, tuple) and len(pattern) == layers:
        return [window if is_sliding else None for is_sliding in pattern]
    first = _FULL_FIRST.get(header.architecture)
    period = pattern if isinstance(pattern, int) else first or _PERIODS.get(header.architecture)
    if not period:
        return [None] * layers  # llama.cpp reads the key of few architectures only
    full = 0 if first else period - 1
    return [None if layer % period == full else window for layer in range(layers)]


def _by_layer(value: Any, layers: int) -> tuple[int, ...] | None:
    if isinstance(value, tuple) and len(value) == layers:
        return tuple(int(one) for one in value)
    return (int(value),) * layers if isinstance(value, int) else None


def _highest(value: Any) -> int:
    return int(max(value, default=0)) if isinstance(value, tuple) else int(value or 0)


def _kind(layer: LayerShape) -> str:
    if not layer.kv_heads:
        return "dummy"
    return "full_attention" if layer.window is None else "sliding_attention"


def _elements(tensor: GgufTensor) -> int:
    return math.prod(tensor.shape)
