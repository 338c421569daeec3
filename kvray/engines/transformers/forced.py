"""Teacher forcing through a candidate's own cache: what the model thought of each token of a given text.

The beginning is read by `generate` itself, the very path that is measured: in the same pieces, with the same kernel
and cache object. So are the first tokens after it decoded, compiled where that was asked for. The rest continues the
same cache through the model's `forward`, several tokens at once, because `generate` would take as long for them as for
a real answer. A cache with a state of its own (Mamba, linear attention, convolutions) takes one token at a time: some
models forget their state when several come at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from kvray.engines.base import DECODED_TOKENS, ForcedText, ForcedToken, UnsupportedError
from kvray.engines.transformers.sliding_window import SinkWindowLayer
from kvray.engines.transformers.translation import is_out_of_memory
from kvray.errors import sentence_of
from kvray.workload import Cell

CHUNK_TOKENS = 64
"""Fed at once afterwards. Less than the 128 tokens that a quantised cache keeps unquantised by default, so that it is
met as in decoding: quantised on the way, not only behind."""
_CHUNK_ROWS = 256
"""Positions over all sequences of a chunk: each has a row of logits as long as the vocabulary."""
ONE_BY_ONE_TOKENS = 32
"""Told where each takes as long as a token of an answer: as many as a short run has."""

ReadAndDecode = Callable[[torch.Tensor, int, LogitsProcessorList], Any]
"""Generates that many tokens after a prompt with these logits processors, and returns the cache that was used."""


@dataclass(frozen=True, kw_only=True)
class ForcedPlan:
    """Which tokens of a text are told, and how they are fed.

    Attributes:
        forced: tokens at the end of the text that may be told.
        told: of these, the last ones that are.
        decoded: of these, the first ones, fed one by one by `generate`.
    """

    text: tuple[int, ...]
    batch_size: int
    forced: int
    told: int
    decoded: int

    @classmethod
    def of(cls, text: ForcedText, cell: Cell, *, piece: int | None, cache: Any) -> ForcedPlan:
        """The plan for a candidate that reads prompts in pieces of `piece` tokens (`None`: at once) into `cache`."""
        is_fast = _takes_several(cache)
        told = text.forced if is_fast else min(text.forced, ONE_BY_ONE_TOKENS)
        if piece is not None and piece < cell.context_tokens:
            told = _told_after_pieces(told, len(text.ids), cell.context_tokens, piece)
        decoded = min(DECODED_TOKENS, told) if is_fast else told
        return cls(text=text.ids, batch_size=cell.batch_size, forced=text.forced, told=told, decoded=decoded)

    @property
    def prompt_tokens(self) -> int:
        """Read at the beginning, before the first token that is told."""
        return len(self.text) - self.told

    @property
    def chunks(self) -> tuple[tuple[int, int], ...]:
        """Parts of what is fed after the decoded tokens, begin and end in the text. They end at round lengths, because
        some quantised caches pack no odd numbers of groups. The text's last token is never fed."""
        step = max(1, min(CHUNK_TOKENS, _CHUNK_ROWS // self.batch_size))
        # `generate` does not feed the last token that it chose.
        begin, end, parts = self.prompt_tokens + self.decoded - 1, len(self.text) - 1, []
        while begin < end:
            part_end = min((begin // step + 1) * step, end)
            parts.append((begin, part_end))
            begin = part_end
        return tuple(parts)

    @property
    def last_begin(self) -> int:
        """Tokens that the cache holds when the last part is fed: what it drops later is not noticed."""
        return self.chunks[-1][0] if self.chunks else len(self.text) - 2


class ForcingProcessor(LogitsProcessor):
    """Notes the log-probabilities at every step of `generate`, then leaves nothing but the given token to choose."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self.seen: list[NDArray[np.float32]] = []
        self._tokens = tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """`scores`: batch × vocabulary."""
        token = self._tokens[len(self.seen)]
        self.seen.append(_log_probabilities(scores))
        forced = torch.full_like(scores, -torch.inf)
        forced[:, token] = 0.0
        return forced


def force(model: Any, plan: ForcedPlan, read_and_decode: ReadAndDecode) -> Iterator[ForcedToken]:
    """Feed the plan's text to all sequences alike. The cache holds all but its last token afterwards."""
    ids = torch.tensor([plan.text], dtype=torch.long, device=model.device).expand(plan.batch_size, -1)
    begin, before = plan.prompt_tokens, len(plan.text) - plan.forced
    processor = ForcingProcessor(plan.text[begin : begin + plan.decoded])
    cache = read_and_decode(ids[:, :begin], plan.decoded, LogitsProcessorList([processor]))
    for index, seen in enumerate(processor.seen):
        yield begin + index - before, plan.text[begin + index], seen
    for begin, end in plan.chunks:
        logits, cache = _continue(model, cache, ids[:, :end], end - begin)
        seen = _log_probabilities(logits)
        for index in range(end - begin):
            yield begin + 1 + index - before, plan.text[begin + 1 + index], seen[:, index]


def _told_after_pieces(most: int, text_tokens: int, context_tokens: int, piece: int) -> int:
    """At most `most` tokens, before which the prompt ends in a piece as long as the last one of a measured prompt, and
    not the first: what a border between pieces does wrong may fade with the tokens after it."""
    answer = text_tokens - context_tokens
    dropped = min((most - answer) // piece, (context_tokens - 1) // piece - 1)
    return min(most, answer + max(0, dropped) * piece)


def _takes_several(cache: Any) -> bool:
    """Whether the cache's layers are the library's own kinds that keep keys and values and nothing else."""
    kinds = {type(layer) for layer in cache.layers}
    plain = {kind for kind in kinds if kind.__module__ == CacheLayerMixin.__module__ or kind is SinkWindowLayer}
    return kinds == plain and not any(issubclass(kind, LinearAttentionCacheLayerMixin) for kind in kinds)


def _continue(model: Any, cache: Any, ids: torch.Tensor, new_tokens: int) -> tuple[torch.Tensor, Any]:
    """Logits of the last `new_tokens` of `ids`, which are not in the cache yet, and the cache that holds them then;
    inputs are made as `generate` does.

    Raises:
        UnsupportedError: the cache takes one token at a time only.
    """
    options = {"attention_mask": torch.ones_like(ids), "past_key_values": cache, "use_cache": True}
    if "position_ids" in inspect.signature(model.forward).parameters:
        options["position_ids"] = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    try:
        with torch.no_grad():
            inputs = model.prepare_inputs_for_generation(ids, next_sequence_length=new_tokens, **options)
            output = model(**inputs, return_dict=True)
    except (RuntimeError, IndexError, TypeError) as error:  # decoding token by token may well work
        if is_out_of_memory(error):
            raise
        raise UnsupportedError(f"the cache does not go on with {new_tokens} tokens: {sentence_of(error)}") from error
    # A model that starts anew in a cache of its own says something of every token.
    return output.logits[:, -new_tokens:], output.past_key_values


def _log_probabilities(logits: torch.Tensor) -> NDArray[np.float32]:
    """Log-probabilities of the first and the last sequence, on the host."""
    ends = logits[[0, -1]] if logits.shape[0] > 1 else logits
    values: NDArray[np.float32] = torch.log_softmax(ends.float(), dim=-1).cpu().numpy()
    return values
