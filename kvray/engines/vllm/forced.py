"""Teacher forcing in vLLM: what the model thought of each token of a given text, through the candidate's own blocks.

The first tokens are decoded: each is the second token of a request whose first one is forced, so its log-probabilities
come from a step that reads what decoding has written. The others are those of a prompt that is the whole text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvray.engines.base import DECODED_TOKENS, ForcedText, ForcedToken, TopLogs
from kvray.engines.vllm.session import RawOutput, Session

MOST_VALUES = 1 << 25
"""Log-probabilities of a prompt that are asked for at once. vLLM tells those of every place of a prompt, so that of a
long text not the whole vocabulary can be told."""
Told = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Ids of tokens, best first, and their log-probabilities."""


@dataclass(frozen=True, kw_only=True)
class Forcing:
    """How one text is fed.

    Attributes:
        rows: sequences of the prepared cell; all are fed the same text.
        vocabulary: token ids of the model.
    """

    text: ForcedText
    rows: int
    vocabulary: int

    @property
    def told_each(self) -> int:
        """Most probable tokens that are asked for at each place of the prompt; the whole vocabulary where it can be."""
        return min(self.vocabulary, max(1, MOST_VALUES // len(self.text.ids)))

    @property
    def asked_rows(self) -> tuple[int, ...]:
        """The rows that are told: the first and the last."""
        return (0,) if self.rows == 1 else (0, self.rows - 1)


def force(session: Session, forcing: Forcing) -> Iterator[ForcedToken]:
    """Feed the text to all sequences alike, and tell its last tokens in order."""
    ids, begin = forcing.text.ids, len(forcing.text.ids) - forcing.text.forced
    decoded = min(DECODED_TOKENS, forcing.text.forced)
    for place in range(decoded):
        told = _decoded(session, forcing, begin + place)
        yield place, ids[begin + place], rows_of(told, vocabulary=forcing.vocabulary)
    if decoded == forcing.text.forced:
        return
    prompts = _read(session, forcing)
    for place in range(decoded, forcing.text.forced):
        # A prompt's first token has no log-probabilities, so row n is of token n + 1.
        told = [(one_ids[begin + place - 1], logs[begin + place - 1]) for one_ids, logs in prompts]
        yield place, ids[begin + place], rows_of(told, vocabulary=forcing.vocabulary)


def _decoded(session: Session, forcing: Forcing, position: int) -> list[Told]:
    """What each of the asked rows thinks of the token at `position`, the one before it having been decoded."""
    from vllm import SamplingParams

    *prompt, last = forcing.text.ids[:position]
    asked = {"temperature": 0.0, "max_tokens": 2, "ignore_eos": True, "detokenize": False, "allowed_token_ids": [last]}
    params = [
        SamplingParams(**asked, logprobs=-1 if row in forcing.asked_rows else None) for row in range(forcing.rows)
    ]
    outputs = session.raw_outputs([prompt] * forcing.rows, params)
    return [_second(outputs[row]) for row in forcing.asked_rows]


def _second(outputs: list[RawOutput]) -> Told:
    """Log-probabilities of the second token that was generated."""
    generated = [one.generated for one in outputs if one.generated is not None]
    ids, logs = (np.concatenate([one[part] for one in generated]) for part in (0, 1))
    return ids[1], logs[1]


def _read(session: Session, forcing: Forcing) -> list[Told]:
    """What each of the asked rows thinks of every token of the text, which is read as a prompt."""
    from vllm import SamplingParams

    wanted = -1 if forcing.told_each == forcing.vocabulary else forcing.told_each
    asked: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1, "ignore_eos": True, "detokenize": False}
    params = [
        SamplingParams(**asked, prompt_logprobs=wanted if row in forcing.asked_rows else None)
        for row in range(forcing.rows)
    ]
    # The last token is only asked about: as a part of the prompt it is not needed, but nothing else tells it.
    outputs = session.raw_outputs([forcing.text.ids] * forcing.rows, params)
    return [next(one.prompt for one in outputs[row] if one.prompt is not None) for row in forcing.asked_rows]


def rows_of(told: list[Told], *, vocabulary: int) -> NDArray[np.float32] | TopLogs:
    """Rows of one place: of the whole vocabulary where all of it was told. vLLM puts the fed token first, whether or
    not it is among the most probable, and then these, so it comes twice."""
    if all(len(ids) > vocabulary for ids, _ in told):
        whole = np.full((len(told), vocabulary), -np.inf, dtype=np.float32)
        for row, (ids, logs) in zip(whole, told, strict=True):
            row[ids] = logs
        return whole
    return TopLogs(
        ids=np.stack([ids[1:] for ids, _ in told]).astype(np.int64),
        logs=np.stack([logs[1:] for _, logs in told]).astype(np.float32),
        token_logs=np.array([logs[0] for _, logs in told], dtype=np.float32),
    )
