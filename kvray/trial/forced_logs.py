"""`ForcedLogs`: what a model thought of each token of a text that it was fed, as numbers that another process can
compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvray.engines.base import ForcedText, ForcedToken, TopLogs
from kvray.trial.divergence import known_rows, nll_bounds


@dataclass(frozen=True, kw_only=True)
class ForcedLogs:
    """Outputs of one process.

    Attributes:
        text: digest of the ids of the text that was fed: only those of one text are comparable.
        rows: log-probabilities (nats) of the told tokens, for the first and the last sequence of the batch (one row
            where there is but one). Each is the float32 that the engine told, exactly.
    """

    text: str
    rows: tuple[tuple[float, ...], ...]

    def to_json(self) -> str:
        """The inverse of `from_json`. What is not finite is written as JavaScript does."""
        return json.dumps({"text": self.text, "rows": self.rows})

    @classmethod
    def from_json(cls, text: str) -> ForcedLogs:
        """What `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            read = json.loads(text)
            return cls(text=str(read["text"]), rows=tuple(tuple(map(float, row)) for row in read["rows"]))
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"no log-probabilities of a text: {error!r}") from error

    @property
    def digest(self) -> str:
        """Digest of the log-probabilities, bit by bit."""
        return hashlib.sha256(np.array(self.rows, dtype="<f4").tobytes()).hexdigest()[:16]


def logs_of(stream: Iterable[ForcedToken], text: ForcedText) -> ForcedLogs:
    """The log-probabilities of the tokens of `stream`, which an engine tells of `text`."""
    told = [_of_token(logs, token) for _, token, logs in stream]
    rows = zip(*told, strict=True)
    return ForcedLogs(text=digest_of_ids(text), rows=tuple(tuple(row) for row in rows))


def digest_of_ids(text: ForcedText) -> str:
    """Sixteen hex digits over the ids of `text`."""
    return hashlib.sha256(np.array(text.ids, dtype="<i8").tobytes()).hexdigest()[:16]


def _of_token(told: NDArray[np.float32] | TopLogs, token: int) -> list[float]:
    """One for each row. Where the engine does not tell the token, the most that it can be."""
    if isinstance(told, np.ndarray):
        return [float(row[token]) for row in told]
    return [-nll_bounds(row, token).low for row in known_rows(told, token)]
