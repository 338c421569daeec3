"""From a GGUF header to a `ModelShape`: parameters are counted from its tensors, what a layer keeps from its keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kvray.forecast.shape import LayerShape, ModelShape
from kvray.models.config_file import MOST
from kvray.models.gguf_header import GgufHeader, GgufTensor

LATENT = "latent_attention"
"""Kind of layers that keep one latent, from which keys and values are computed."""
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
    """`full_attention`, `sliding_attention`, `LATENT`, or `dummy` for one that keeps nothing, by layer; empty:
    unknown."""
    if header.own("attention.key_length_mla"):
        return (LATENT,) * (known_number(header.own("block_count")) or 0)
    return tuple(_kind(layer) for layer in _layers(header) or ())


def shape_of(header: GgufHeader) -> ModelShape | None:
    """The sizes of the model; `None` where the header does not tell what a layer keeps."""
    layers = _layers(header)
    heads, width = _highest(header.own("attention.head_count")), known_number(header.own("embedding_length"))
    tensors = header.tensors
    embedding = tensors["token_embd.weight"]
    if layers is None or not heads or not width or not _elements(embedding):
        return None
    is_tied = "output.weight" not in tensors
    experts = known_number(header.own("expert_count")) or 0
    return ModelShape(
        total_parameters=sum(map(_elements, tensors.values())),
        lookup_parameters=0 if is_tied else _elements(embedding),
        expert_parameters=sum(_elements(one) for name, one in tensors.items() if "_exps." in name),
        experts=experts,
        experts_per_token=min(experts, known_number(header.own("expert_used_count")) or 0),
        vocab=embedding.shape[-1],
        hidden=width,
        intermediate=max(_highest(header.own("feed_forward_length")), width),
        heads=heads,
        layers=layers,
    )


def known_number(value: Any) -> int | None:
    """A number of things; `None` for what cannot be one, for a header may say anything."""
    return value if type(value) is int and 0 <= value <= MOST else None


def _layers(header: GgufHeader) -> tuple[LayerShape, ...] | None:
    count, width = known_number(header.own("block_count")), known_number(header.own("embedding_length"))
    if not count or not width or any(header.own(key) for key in _UNKNOWN_KEYS):
        return None
    heads = _by_layer(header.own("attention.head_count"), count)
    kv_heads = _by_layer(header.own("attention.head_count_kv"), count) or heads
    if heads is None or kv_heads is None or not max(heads) or not max(kv_heads):
        return None
    key_dim = known_number(header.own("attention.key_length")) or width // max(heads)
    value_dim = known_number(header.own("attention.value_length")) or width // max(heads)
    if not key_dim or not value_dim:
        return None
    windows = _windows(header, count)
    return tuple(
        LayerShape(kv_heads=kv, key_dim=key_dim if kv else 0, value_dim=value_dim if kv else 0, window=window)
        for kv, window in zip(kv_heads, windows, strict=True)
    )


def _windows(header: GgufHeader, layers: int) -> list[int | None]:
    window = known_number(header.own("attention.sliding_window"))
    if not window:
        return [None] * layers
    pattern = header.own("attention.sliding_window_pattern")
    if isinstance(pattern, tuple) and len(pattern) == layers:
        return [window if is_sliding else None for is_sliding in pattern]
    first = _FULL_FIRST.get(header.architecture)
    period = known_number(pattern) or first or _PERIODS.get(header.architecture)
    if not period:
        return [None] * layers  # llama.cpp reads the key of few architectures only
    full = 0 if first else period - 1
    return [None if layer % period == full else window for layer in range(layers)]


def _by_layer(value: Any, layers: int) -> tuple[int, ...] | None:
    values = value if isinstance(value, tuple) and len(value) == layers else (value,) * layers
    numbers = [known_number(one) for one in values]
    known = tuple(one for one in numbers if one is not None)
    return known if len(known) == layers else None


def _highest(value: Any) -> int:
    return (
        max((known_number(one) or 0 for one in value), default=0)
        if isinstance(value, tuple)
        else known_number(value) or 0
    )


def _kind(layer: LayerShape) -> str:
    if not layer.kv_heads:
        return "dummy"
    return "full_attention" if layer.window is None else "sliding_attention"


def _elements(tensor: GgufTensor) -> int:
    return math.prod(tensor.shape)
