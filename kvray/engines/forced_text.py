"""The text on which quality is measured, and what an engine tells of its tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DECODED_TOKENS = 4
"""So many of the forced tokens are decoded one by one as in an answer; each costs as much as thirty tokens at once."""


@dataclass(frozen=True, kw_only=True)
class ForcedText:
    """Token ids that all candidates of a model are fed alike, whatever engine they have.

    Attributes:
        ids: the whole text, as long as the cell at which quality is measured (context + output tokens).
        forced: so many of its last tokens may be told.
    """

    ids: tuple[int, ...]
    forced: int


@dataclass(frozen=True, kw_only=True)
class TopLogs:
    """The most probable tokens of a distribution with their log-probabilities (nats), for an engine that does not tell
    the whole vocabulary. Every other token is at most as probable as the last of them.

    Attributes:
        ids, logs: rows × k, best first; of equally probable ones the lowest id first.
        token_logs: log-probability of the fed token, one per row, where the engine tells that whether or not it is
            among the most probable; `None`: it does not.
    """

    ids: NDArray[np.int64]
    logs: NDArray[np.float32]
    token_logs: NDArray[np.float32] | None = None


ForcedToken = tuple[int, int, NDArray[np.float32] | TopLogs]
"""The place of a token among those that are forced, counted from 0, its id, and the log-probabilities (nats) just
before it was fed: rows × vocabulary, or the most probable tokens of each row."""
