"""Token ids that stand for nothing but text. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def ordinary_ids(config: Any) -> list[int]:
    """The ids below the vocabulary's size that no field of `config` gives a meaning (end of text, padding, place of an
    image); all ids where every one has a meaning."""
    vocabulary = int(config.get_text_config(decoder=True).vocab_size)
    special = {one for part in (config, config.get_text_config(decoder=True)) for one in _special_ids(part)}
    return [one for one in range(vocabulary) if one not in special] or list(range(vocabulary))


def _special_ids(config: Any) -> Iterator[int]:
    for name, value in vars(config).items():
        if name.endswith(("token_id", "token_index", "token_ids")):
            yield from (one for one in (value if isinstance(value, list) else [value]) if type(one) is int)
