"""A first look at a config.json, before Transformers reads it: sizes that no model has would take all memory there.

Transformers makes a list as long as the number of layers, and sums over it; nothing there is bounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvray.errors import ModelError
from kvray.models.checkpoint import is_pointer

MOST_BYTES = 64 << 20
MOST_LAYERS = 10_000
"""Ten times those of any model known. Holds for every number whose name speaks of layers or blocks, not of sizes."""
MOST = 2**53
"""For any number: beyond, a float does not hold every whole one, and products leave what a float holds."""
_LAYERS = ("layer", "block", "depth")
_SIZES = ("size", "vocab", "dim", "length", "position", "token")
"""In names such as `vocab_size_per_layer_input` and `block_size`, which count no layers."""


def check_config_file(path: Path) -> None:
    """Refuse what cannot be a model's configuration.

    Raises:
        ModelError: it is too large, or a number in it is; names the field.
        OSError, ValueError, RecursionError: it cannot be read, or is not JSON.
    """
    if is_pointer(path):
        raise ModelError(
            f"{str(path)!r} is a git-lfs pointer, not what it stands for.", hint="Run `git lfs pull` in its folder."
        )
    if path.stat().st_size > MOST_BYTES:
        raise ModelError(f"{str(path)!r} has {path.stat().st_size:,} bytes; a config has {MOST_BYTES:,} at most.")
    for name, number in _numbers("", json.loads(path.read_text(encoding="utf-8"))):
        most = MOST_LAYERS if _counts_layers(name) else MOST
        if isinstance(number, int) and abs(number) > most:
            raise ModelError(f"{str(path)!r}: {name} is {_shown(number)}; {most:,} is the most that is believed.")


def _numbers(name: str, value: Any) -> Iterator[tuple[str, int | float]]:
    """Every number with the name of the field that holds it, however deep."""
    match value:
        case bool():
            return
        case int() | float():
            yield name, value
        case dict():
            for key, one in value.items():
                yield from _numbers(str(key), one)
        case list():
            for one in value:
                yield from _numbers(name, one)


def _counts_layers(name: str) -> bool:
    return any(word in name for word in _LAYERS) and not any(word in name for word in _SIZES)


def _shown(number: int) -> str:
    return str(number) if abs(number) < 10**30 else "beyond 10^30"
