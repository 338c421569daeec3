"""Greedy generation with a time stamp for each token, as a loop over llama.cpp's C API."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvray.engines.base import Generation, SubstitutedError
from kvray.engines.llama_cpp.context import NativeContext, TokenBatch
from kvray.engines.llama_cpp.graph import GraphRecorder, Step


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt per sequence, all of the same length.

    Attributes:
        batch: all tokens, of which the last of each sequence has its logits wanted.
        excluded: ids that are never chosen: those that end an answer, and those that the file suppresses.
    """

    batch: TokenBatch
    sequences: int
    tokens: int
    excluded: NDArray[np.int64]

    @classmethod
    def of(cls, rows: list[list[int]], excluded: NDArray[np.int64]) -> Prompt:
        """The prompt of `rows`."""
        tokens = len(rows[0])
        wanted = [[0] * (tokens - 1) + [1]] * len(rows)
        batch = TokenBatch.of_rows(rows, begin=0, wanted=wanted)
        return cls(batch=batch, sequences=len(rows), tokens=tokens, excluded=excluded)


def generate(
    context: NativeContext, prompt: Prompt, output_tokens: int, recorder: GraphRecorder | None = None
) -> Generation:
    """Exactly `output_tokens` per sequence. The clock starts before the cache is emptied: a user pays for that.

    Args:
        recorder: of the context's nodes; its own time is left out of the stamps.

    Raises:
        SubstitutedError: something of an earlier call was left in the cache.
        OutOfMemoryError, UnsupportedError
    """
    stamps, tokens = list[float](), list[list[int]]()
    started = _now(recorder)
    for chosen in itertools.islice(choices(context, prompt, recorder), output_tokens):
        stamps.append(_now(recorder))
        tokens.append(chosen.tolist())
    return Generation(started_s=started, token_s=tuple(stamps), tokens=tuple(zip(*tokens, strict=True)))


def choices(
    context: NativeContext, prompt: Prompt, recorder: GraphRecorder | None = None
) -> Iterator[NDArray[np.int32]]:
    """The next token of each sequence, without end. A token is fed when the one after it is asked for."""
    context.clear()
    _check_empty(context, prompt.sequences)
    _tell(recorder, Step.PREFILL)
    chosen = _chosen(context.feed(prompt.batch), prompt.batch, prompt)
    yield chosen
    step = _first_step(prompt, chosen)
    _tell(recorder, Step.DECODE)
    while True:
        chosen = _chosen(context.feed(step), step, prompt)
        yield chosen
        _tell(recorder, None)  # one step shows all
        step.tokens[:] = chosen
        step.places += 1


def _chosen(told: Iterable[tuple[int, NDArray[np.float32]]], batch: TokenBatch, prompt: Prompt) -> NDArray[np.int32]:
    """The most probable token of each sequence; the lowest id of equally probable ones."""
    chosen = np.empty(prompt.sequences, dtype=np.int32)
    for index, logits in told:
        logits[prompt.excluded] = -np.inf
        chosen[batch.sequences[index]] = logits.argmax()
    return chosen


def _first_step(prompt: Prompt, chosen: NDArray[np.int32]) -> TokenBatch:
    sequences = np.arange(prompt.sequences, dtype=np.int32)
    return TokenBatch(
        chosen.copy(), np.full_like(sequences, prompt.tokens), sequences, np.ones(prompt.sequences, dtype=np.int8)
    )


def _check_empty(context: NativeContext, sequences: int) -> None:
    left = max(context.held_tokens(one) for one in range(sequences))
    if left:
        raise SubstitutedError(f"asked for an empty cache, it still held {left} tokens of an earlier call")


def _now(recorder: GraphRecorder | None) -> float:
    return time.perf_counter() - (0.0 if recorder is None else recorder.spent_s)


def _tell(recorder: GraphRecorder | None, step: Step | None) -> None:
    if recorder is not None:
        recorder.step = step
