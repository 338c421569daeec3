"""Teacher forcing through a context's cache: what the model thought of each token of a given text.

The beginning is read in the pieces in which prompts are measured. The first tokens after it are decoded one by one, as
in an answer, and the others follow many at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kvray.engines.base import DECODED_TOKENS, ForcedText, ForcedToken, UnsupportedError
from kvray.engines.llama_cpp.context import NativeContext, TokenBatch

CHUNK_TOKENS = 64
_CHUNK_LOGITS = 1 << 24
"""Most logits that a chunk leaves on the host: 64 MiB."""


def check_text(text: ForcedText, vocabulary: int) -> None:
    """Refuse a text of another tokenizer, as far as its ids show that.

    Raises:
        UnsupportedError
    """
    if max(text.ids) >= vocabulary or min(text.ids) < 0:
        raise UnsupportedError(
            f"the reference's text has the token {max(text.ids)}, this model knows {vocabulary} tokens"
        )


def force(context: NativeContext, text: ForcedText, *, rows: int, vocabulary: int) -> Iterator[ForcedToken]:
    """Feed `text` to `rows` sequences alike, into the empty cache of `context`; tell the last `text.forced` tokens."""
    for begin, end in feed_plan(len(text.ids), text.forced, chunk=_chunk_tokens(rows, vocabulary)):
        first_told = len(text.ids) - text.forced
        # The logits of a token tell what comes after it.
        wanted = [int(first_told <= place + 1) for place in range(begin, end)]
        told = _tell(context, text.ids[begin:end], begin, wanted, rows)
        for place, logs in told:
            yield place + 1 - first_told, text.ids[place + 1], logs


def feed_plan(length: int, forced: int, *, chunk: int) -> list[tuple[int, int]]:
    """Parts of a text of `length` tokens in the order in which they are fed, begin and end: the prompt, the decoded
    tokens, then chunks. The last token is never fed."""
    begin = length - forced
    ends = [begin, *range(begin + 1, min(begin + DECODED_TOKENS, length))]
    ends += [*range(ends[-1] + chunk, length - 1, chunk), length - 1] if ends[-1] < length - 1 else []
    return list(zip([0, *ends], ends, strict=False))


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logarithm of the softmax over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    result: NDArray[np.float32] = (shifted - np.log(total)).astype(np.float32)
    return result


def _chunk_tokens(rows: int, vocabulary: int) -> int:
    return max(1, min(CHUNK_TOKENS, _CHUNK_LOGITS // (min(rows, 2) * vocabulary)))


def _tell(
    context: NativeContext, ids: Sequence[int], begin: int, wanted: Sequence[int], rows: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Feed `ids` to all sequences; for each wanted token its place, and the log-probabilities that the first and the
    last sequence have after it."""
    ends = sorted({0, rows - 1})
    quiet = [0] * len(ids)
    batch = TokenBatch.of_rows(
        [ids] * rows, begin=begin, wanted=[wanted if row in ends else quiet for row in range(rows)]
    )
    found = {index: log_probabilities(logits) for index, logits in context.feed(batch)}
    for offset, is_wanted in enumerate(wanted):
        if is_wanted:
            yield begin + offset, np.stack([found[row * len(ids) + offset] for row in ends])
