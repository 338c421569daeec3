"""How many tokens a model holds, prompt and output together, as its config says it. Imports no torch.

A model with a table of positions fails beyond its last row. A model with rotary embeddings computes a position when it
comes, so nothing fails there: its limit is what its makers claim, stretched as the config's scaling says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "max_sequence_length")
"""Fields for the same number, in the order in which they are believed."""
_WIDER_NAMES = ("model_max_length", "max_sequence_length")
"""Where a rotary model that was trained further says so, its `max_position_embeddings` being left as it was."""
_STRETCHING = ("yarn", "linear", "dynamic")
"""Kinds of rotary scaling with a `factor` that `max_position_embeddings` need not contain. In the others it does."""
_PADDED_POSITIONS = frozenset(
    {
        *("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    }
)
"""Types that count positions from the padding token's id upwards, so that so many rows of their table are lost."""


def context_limit(config: Any) -> int | None:
    """Tokens that a model of this `config` holds; `None`: its config names no limit.

    Raises:
        ValueError: the config names something that is not a number of tokens.
    """
    text = config.get_text_config(decoder=True)
    named = next(((name, value) for name in _NAMES if (value := getattr(text, name, None)) is not None), None)
    if named is None:
        return None
    stated = _tokens(*named)
    if text.model_type in _PADDED_POSITIONS:
        return max(1, stated - (text.pad_token_id or 0) - 1)
    rotary = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if not isinstance(rotary, Mapping):
        return stated
    wider = [value for name in _WIDER_NAMES if type(value := getattr(text, name, None)) is int]
    return max(stated, _stretched(rotary, stated), *wider)


def _tokens(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} {value!r} is not a number of tokens")
    return value


def _stretched(rotary: Mapping[str, Any], stated: int) -> int:
    if rotary.get("rope_type", rotary.get("type")) not in _STRETCHING:
        return stated
    factor, original = rotary.get("factor"), rotary.get("original_max_position_embeddings")
    return int((factor or 1) * (original or stated))
