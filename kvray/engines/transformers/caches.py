"""Cache objects: made as the arguments say, and read back to say what they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import transformers

from kvray.engines.transformers.arguments import SLIDING_WINDOW_CLASS, CallArguments
from kvray.engines.transformers.sliding_window import SlidingWindowCache
from kvray.forecast.shape import LayerShape
from kvray.workload import Cell

_PLAIN_LAYERS = frozenset(
    {
        *("DynamicLayer", "DynamicSlidingWindowLayer", "DynamicIndexedLayer", "SinkWindowLayer"),
        *("StaticLayer", "StaticSlidingWindowLayer", "StaticIndexedLayer"),
        *("LinearAttentionAndFullAttentionLayer", "LinearAttentionAndSlidingWindowAttentionLayer"),
        *("LinearAttentionAndStaticFullAttentionLayer", "LinearAttentionAndStaticSlidingWindowAttentionLayer"),
    }
)
"""Layers of `transformers.cache_utils`, by name because not every version has all, and ours."""


def make_cache(arguments: CallArguments, config: Any, cell: Cell) -> Any:
    """An empty cache of the class that `arguments` name; a static one is sized for `cell`."""
    own = arguments.cache_class == SLIDING_WINDOW_CLASS
    cache_class: Any = SlidingWindowCache if own else getattr(transformers, arguments.cache_class)
    options = dict(arguments.cache_options)
    if arguments.static_cache:
        options["max_cache_len"] = arguments.cache_length(cell)
    return cache_class(config=config, **options)


def cache_bytes(cache: Any) -> int:
    """Bytes of all tensors in the cache's layers: keys and values as stored, with the scales of quantised ones, and
    states of linear attention. Of a paged cache the pages, used or not."""
    return sum(_stored_bytes(tensor) for tensor in _pages(cache) or _tensors(cache))


def layer_bytes(layer: Any) -> int:
    """Bytes of one layer's keys and values as tensors; none of what a quantised layer stores beside them."""
    return _stored_bytes(layer.keys) + _stored_bytes(layer.values)


def layer_shape(layer: Any) -> LayerShape | None:
    """The sizes of a layer that holds keys and values as plain tensors, read from these; `None` for any other kind, and
    where nothing was put in yet."""
    if type(layer).__name__ not in _PLAIN_LAYERS or layer.keys is None:
        return None
    keys, values = layer.keys, layer.values
    if keys.dim() != 4 or values.dim() != 4:
        return None
    window = getattr(layer, "sliding_window", None)
    if window is None and layer.is_sliding:  # a static layer keeps no other note of it
        window = layer.max_cache_len
    return LayerShape(
        kv_heads=int(keys.shape[1]),
        key_dim=int(keys.shape[3]),
        value_dim=int(values.shape[3]),
        window=None if window is None else int(window),
    )


def tokens_taken(cache: Any) -> int | None:
    """Tokens of each sequence that went into the cache since it was empty, also those that a sliding window has
    dropped; `None` where no layer counts them."""
    try:
        return int(cache.get_seq_length())
    except ValueError:  # linear attention only
        return None


def cache_layers(cache: Any) -> str:
    """Classes of the layers with their counts, e.g. `StaticLayer×30`."""
    counts = Counter(type(layer).__name__ for layer in cache.layers)
    return " + ".join(f"{name}×{count}" for name, count in counts.items())


def kv_dtype(cache: Any) -> str | None:
    """How the first layer with keys stores them: `bfloat16`, `float8_e4m3fn`, or `4-bit quanto`."""
    if not hasattr(cache, "layers"):  # pages are plain bytes
        return dtype_name(cache.dtype)
    for layer in cache.layers:
        if getattr(layer, "nbits", None) is not None:
            backend = type(layer).__name__.removesuffix("QuantizedLayer").lower()
            return f"{layer.nbits}-bit {backend}"
        if (stored := getattr(layer, "_quantized_keys", None)) is not None:
            return dtype_name(stored[0].dtype)
        if getattr(layer, "keys", None) is not None:
            return dtype_name(layer.keys.dtype)
    return None


def dtype_name(dtype: torch.dtype) -> str:
    """E.g. `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def _pages(cache: Any) -> list[torch.Tensor]:
    """The tensors of a paged cache, one for all layers or, before transformers 5.18, one for each; else none."""
    if hasattr(cache, "layers"):
        return []
    one = getattr(cache, "cache_tensor", None)
    return [one] if one is not None else [*cache.key_cache, *cache.value_cache]


def _stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor as it is in memory: a quantised one is a shell around other tensors."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(_stored_bytes(getattr(tensor, name)) for name in names)
    return int(tensor.numel() * tensor.element_size())


def _tensors(cache: Any) -> Iterator[torch.Tensor]:
    seen: set[int] = set()
    for layer in cache.layers:
        for tensor in _tensors_in(vars(layer)):
            if id(tensor) not in seen and tensor.dim() > 1:
                seen.add(id(tensor))
                yield tensor


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors_in(part)
