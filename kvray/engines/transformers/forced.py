"""Teacher forcing through a candidate's own cache: what the model thought of each token of a given text.

The first tokens after the prefill go through `generate` itself, the very path that is measured: compiled decode, forced
kernel, cache object. The rest continues the same cache through the model's `forward`, several tokens at once, because
`generate` would take as long for them as for a real answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessor, LogitsProcessorList

from kvray.engines.base import DECODED_TOKENS, ForcedToken, UnsupportedError
from kvray.engines.transformers.translation import is_out_of_memory
from kvray.errors import first_line

CHUNK_TOKENS = 64
"""Fed at once afterwards. Less than the 128 tokens that a quantised cache keeps unquantised by default, so that it is
met as in decoding: quantised on the way, not only behind."""
_CHUNK_ROWS = 256
"""Positions over all sequences of a chunk: each has a row of logits as long as the vocabulary."""


class ForcingProcessor(LogitsProcessor):
    """Notes the log-probabilities at every step of `generate`, then leaves nothing but the given token to choose."""

    def __init__(self, tokens: list[int]) -> None:
        self.seen: list[NDArray[np.float32]] = []
        self._tokens = tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """`scores`: batch × vocabulary."""
        token = self._tokens[len(self.seen)]
        self.seen.append(_log_probabilities(scores))
        forced = torch.full_like(scores, -torch.inf)
        forced[:, token] = 0.0
        return forced


def force(
    model: Any,
    cache: Any,
    text: list[int],
    *,
    batch_size: int,
    forced: int,
    generate: Callable[[torch.Tensor, int, LogitsProcessorList], object],
) -> Iterator[ForcedToken]:
    """Feed `text` (but its last token, before which the last log-probabilities are) to `batch_size` sequences alike.

    Args:
        cache: empty; holds `len(text) - 1` tokens afterwards.
        generate: generates that many tokens after a prompt through `cache`, with these logits processors.
    """
    ids = torch.tensor([text], dtype=torch.long, device=model.device).expand(batch_size, -1)
    prompt_tokens, generated = len(text) - forced, min(DECODED_TOKENS, forced)
    processor = ForcingProcessor(text[prompt_tokens : prompt_tokens + generated])
    generate(ids[:, :prompt_tokens], generated, LogitsProcessorList([processor]))
    yield from zip(text[prompt_tokens:], processor.seen, strict=False)
    # `generate` does not feed the last token that it chose.
    for begin, end in _chunks(prompt_tokens + generated - 1, len(text) - 1, batch_size):
        seen = _log_probabilities(_continue(model, cache, ids[:, :end], end - begin))
        yield from ((text[begin + 1 + place], seen[:, place]) for place in range(end - begin))


def last_chunk_begin(text_tokens: int, *, batch_size: int, forced: int) -> int:
    """Tokens that the cache holds when the last chunk of such a text is fed: what it drops later is not noticed."""
    begin = text_tokens - forced + min(DECODED_TOKENS, forced) - 1
    return max((start for start, _ in _chunks(begin, text_tokens - 1, batch_size)), default=begin)


def _chunks(begin: int, end: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """Parts of `begin` to `end` that end at round lengths: some quantised caches pack no odd numbers of groups."""
    step = max(1, min(CHUNK_TOKENS, _CHUNK_ROWS // batch_size))
    while begin < end:
        part_end = min((begin // step + 1) * step, end)
        yield begin, part_end
        begin = part_end


def _continue(model: Any, cache: Any, ids: torch.Tensor, new_tokens: int) -> torch.Tensor:
    """Logits of the last `new_tokens` of `ids`, which are not in the cache yet; inputs are made as `generate` does.

    Raises:
        UnsupportedError: the cache takes one token at a time only.
    """
    options = {"attention_mask": torch.ones_like(ids), "past_key_values": cache, "use_cache": True}
    if "position_ids" in inspect.signature(model.forward).parameters:
        options["position_ids"] = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    try:
        with torch.no_grad():
            inputs = model.prepare_inputs_for_generation(ids, next_sequence_length=new_tokens, **options)
            logits: torch.Tensor = model(**inputs, return_dict=True).logits
    except (RuntimeError, IndexError, TypeError) as error:  # decoding token by token may well work
        if is_out_of_memory(error):
            raise
        raise UnsupportedError(f"the cache does not go on with {new_tokens} tokens: {first_line(error)}") from error
    return logits


def _log_probabilities(logits: torch.Tensor) -> NDArray[np.float32]:
    """Of the first and the last sequence, on the host."""
    ends = logits[[0, -1]] if logits.shape[0] > 1 else logits
    values: NDArray[np.float32] = torch.log_softmax(ends.float(), dim=-1).cpu().numpy()
    return values
