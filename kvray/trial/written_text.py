"""Whether an engine writes the text of the quality reference with the same tokens as the engine that made it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kvray.engines.base import LoadedModel, UnsupportedError
from kvray.trial.quality import IncomparableError, Reference

SAME_VOCABULARY = 0.9
"""Share of a text's tokens, in whatever order, from which on both engines mean the same by a token's id. Two splits of
one text by one vocabulary share nearly all; two vocabularies share what chance brings."""


def writing_note(model: LoadedModel, reference: Reference, *, maker: str) -> str | None:
    """What is to be said of the tokenizer of `model`, which has the reference's cell prepared; `None` where it writes
    the reference's text, which begins as prompts do, token for token.

    Args:
        maker: the engine that made the reference.

    Raises:
        IncomparableError: it has another vocabulary, so the reference's ids mean other tokens to it.
    """
    fed = reference.forced_text
    try:
        own = model.forced_text(fed.forced).ids
    except UnsupportedError:
        return (
            f"the engine does not tell how its tokenizer writes the prompts; they may be others than those of {maker}"
        )
    return writing_difference(own, fed.ids, maker=maker)


def writing_difference(own: Sequence[int], fed: Sequence[int], *, maker: str) -> str | None:
    """The difference between two token texts, as `writing_note` has it.

    Raises:
        IncomparableError: they are of other vocabularies.
    """
    if tuple(own) == tuple(fed):
        return None
    shared = (Counter(own) & Counter(fed)).total()
    if shared < SAME_VOCABULARY * len(fed):
        raise IncomparableError(
            f"its tokenizer has another vocabulary than that of {maker}: of {len(fed)} tokens they share {shared}"
        )
    place = next((place for place, (one, two) in enumerate(zip(own, fed, strict=False)) if one != two), len(fed))
    return (
        f"its tokenizer writes the prompts otherwise than that of {maker}, from token {place + 1} on: prompts have as "
        "many tokens, and not the same ones"
    )
