"""Cache objects: made as the arguments say, and read back to say what they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import transformers

from kvray.engines.transformers.arguments import CallArguments, cache_length
from kvray.workload import Cell


def make_cache(arguments: CallArguments, config: Any, cell: Cell) -> Any:
    """An empty cache of the class that `arguments` name; a static one is sized for `cell`."""
    cache_class = getattr(transformers, arguments.cache_class)
    if arguments.static_cache:
        return cache_class(config=config, max_cache_len=cache_length(cell))
    return cache_class(config=config)


def cache_bytes(cache: Any) -> int:
    """Bytes of all tensors in the cache's layers: keys and values as stored, and states of linear attention."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(cache))


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
    """Dtype of the first layer's keys as stored, e.g. `bfloat16`."""
    keys = next((layer.keys for layer in cache.layers if getattr(layer, "keys", None) is not None), None)
    return None if keys is None else str(keys.dtype).removeprefix("torch.")


def _tensors(cache: Any) -> Iterator[Any]:
    import torch

    seen: set[int] = set()
    for layer in cache.layers:
        for value in vars(layer).values():
            if isinstance(value, torch.Tensor) and value.dim() > 1 and value.data_ptr() not in seen:
                seen.add(value.data_ptr())
                yield value
