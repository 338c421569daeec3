"""From a model's config to that of a small model which behaves like it: few layers, narrow, every switch as it was.

What a model does (whether it looks ahead, what it keeps) hangs on its class and its switches, not on its size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

_WIDTH = 256
"""For models without heads; nothing narrower is made narrower."""
_WIDEST = 1024
_ROUNDED_TO = 16
_EXPERTS = 4
"""In each group of experts."""
_LAYERS = 2
_SMALL = {"vocab": 512, "position": 512, "topk_group": 4, "moe_topk": 2, "moe_top_k": 2, "moe_k": 2}
"""By parts of names: the most that is left of such a number."""
_KEPT = ("seq", "length", "window", "chunk", "ctx", "head_dim", "head_size", "d_head", "image", "patch", "token")
"""Parts of names that tell no width. The size of a head stays, because rotary embeddings are laid out by it."""
_MOST = 4096
"""For every number, so that no name that nobody thought of makes a huge model."""


def small_config(config: Any, *, heads: int) -> Any:
    """A copy of `config` for a model of a million parameters or so.

    Args:
        heads: attention heads that are left; their size stays, so the model becomes as narrow.
    """
    small = copy.deepcopy(config)
    for part in (small, *_parts(small)):
        _keep_first_layers(part)
        _narrow(part, heads)
        _limit_ids(part)
    return small


def _parts(config: Any) -> Iterator[Any]:
    for name in getattr(config, "sub_configs", None) or ():
        part = getattr(config, name, None)
        if part is not None and not isinstance(part, dict):
            yield part
            yield from _parts(part)


def _keep_first_layers(config: Any) -> None:
    """Keep layers from the first until there is one of every kind; all, where layers use the keys of earlier ones."""
    layers = getattr(config, "num_hidden_layers", None)
    if type(layers) is not int or getattr(config, "num_kv_shared_layers", None):
        return
    kept = min(layers, max([_LAYERS, *(_until_every_kind(kinds) for kinds in _lists(config, layers))]))
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == layers:
            setattr(config, name, value[:kept])
        elif isinstance(value, list) and "layer" in name and all(type(one) is int for one in value):
            setattr(config, name, [one for one in value if one < kept])
        elif type(value) is int and name.endswith(("layers", "layer")) and value > kept:
            setattr(config, name, kept)
    config.num_hidden_layers = kept


def _lists(config: Any, layers: int) -> Iterator[list[str]]:
    """Per list that tells layers apart: a name for what each layer is. A list of numbers that are all different tells
    which layers there are, not of which kind."""
    computed = [getattr(config, name, None) for name in ("layer_types", "layers_block_type")]
    for value in (*vars(config).values(), *computed):
        if isinstance(value, list | tuple) and len(value) == layers:
            kinds = [repr(one) for one in value]
            if len(set(kinds)) < layers or not all(type(one) is int for one in value):
                yield kinds


def _until_every_kind(kinds: list[str]) -> int:
    return max(kinds.index(kind) + 1 for kind in kinds)


def _narrow(config: Any, most_heads: int) -> None:
    heads, width = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    share = 1.0
    if type(heads) is int and heads > most_heads:
        share = most_heads / heads
    elif type(heads) is not int and type(width) is int and width > _WIDTH:
        share = _WIDTH / width
    experts = _EXPERTS * (getattr(config, "n_group", None) or 1)
    for name, value in list(vars(config).items()):
        if name.startswith("_"):
            continue
        if isinstance(value, list) and value and all(type(one) is int for one in value):
            setattr(config, name, [_narrowed(name, one, share, experts) for one in value])
        elif type(value) is int:
            setattr(config, name, _narrowed(name, value, share, experts))


def _narrowed(name: str, value: int, share: float, experts: int) -> int:
    if "expert" in name and "size" not in name:
        return min(value, experts)
    if most := next((most for part, most in _SMALL.items() if part in name), None):
        return min(value, most)
    if any(part in name for part in _KEPT):
        return min(value, _MOST)
    if "head" in name:
        return max(1, int(value * share)) if value > 0 else value
    if value < _WIDTH:
        return value
    return min(_WIDEST, -(-int(value * share) // _ROUNDED_TO) * _ROUNDED_TO)


def _limit_ids(config: Any) -> None:
    """Bring ids of single tokens into the small vocabulary."""
    vocabulary = getattr(config, "vocab_size", None)
    if type(vocabulary) is not int:
        return
    for name, value in list(vars(config).items()):
        if name.endswith(("token_id", "token_index")):
            if type(value) is int and value >= vocabulary:
                setattr(config, name, vocabulary - 1)
            elif isinstance(value, list):
                setattr(config, name, [min(one, vocabulary - 1) for one in value if type(one) is int])
