"""Prompts of exactly n tokens of real text, the same for every candidate.

The text is public domain (Carroll, Austen, Melville, the Declaration of Independence, Cervantes, Dante, Goethe,
Proust, Dickens, Shakespeare) with two functions of our own: several languages and code. Quality is measured on
another one (Bécquer, Heine, Hugo, Conan Doyle, Lao Tzu, Tolstoy, code of our own), which quotes the first one's
beginning so that a cache that has lost it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

ROW_STRIDE = 97
"""Tokens by which each sequence of a batch starts later than the one before, so that no two rows are equal."""


def prompt_text() -> str:
    """The whole text, about 6,400 characters."""
    return files("kvray.engines").joinpath("prompt_text.txt").read_text(encoding="utf-8")


def forced_text() -> str:
    """The text that is teacher-forced for quality, about 1,300 characters, 300 to 450 tokens."""
    return files("kvray.engines").joinpath("forced_text.txt").read_text(encoding="utf-8")


def tile_tokens(
    tokens: Sequence[int], *, context_tokens: int, rows: int, prefix: Sequence[int] = ()
) -> list[list[int]]:
    """`rows` prompts of exactly `context_tokens` ids: `prefix` (e.g. BOS), then `tokens` repeated from a row's offset.

    Raises:
        ValueError: `tokens` is empty.
    """
    if not tokens:
        raise ValueError("no tokens to build a prompt from")
    body = context_tokens - len(prefix)
    return [
        [*prefix, *(tokens[(row * ROW_STRIDE + i) % len(tokens)] for i in range(body))][:context_tokens]
        for row in range(rows)
    ]
