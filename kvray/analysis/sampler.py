"""What a search is asked and told (`Sampler`), what it predicts, and the search that simply launches everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from typing_extensions import override

from kvray.analysis.aggregate import Metrics
from kvray.candidate import Candidate

MISS_CHANCE = 0.02
"""The search ends when the chance is smaller that anything not launched beats the best by more than `NEAR`."""
ENUMERATED = 12
"""A space of so many candidates is launched as a whole: there is little to save."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model of the axes expects of a candidate.

    Attributes:
        ttft_ms, decode_tok_s, peak_mib: medians.
        low, high: 95 % interval of its score relative to the best measured one: 1.0 is as good, 1.1 is 10 % better.
        chance: probability that it beats the best measured one by more than 2 %.
    """

    candidate: Candidate
    ttft_ms: float
    decode_tok_s: float
    peak_mib: float | None
    low: float
    high: float
    chance: float

    @property
    def text(self) -> str:
        """For people, all on one line."""
        chance = "below 0.1 %" if self.chance < 0.001 else f"{self.chance:.1%}".replace("%", " %")
        return (
            f"predicted TTFT {self.ttft_ms:,.4g} ms, {self.decode_tok_s:,.4g} tok/s, and a score of {self.low:.2f} to "
            f"{self.high:.2f} times the best one's (95 %); chance that it is more than 2 % better: {chance}"
        )


class Sampler(Protocol):
    """What a search asks and tells; told of the running ones too."""

    def launched(self, candidate_id: str) -> None:
        """A process was started for it."""

    def measured(
        self,
        candidate_id: str,
        rung: int,
        metrics: Metrics,
        *,
        may_keep_limits: bool = True,
        is_disturbed: bool = False,
    ) -> None:
        """It completed `rung`.

        Args:
            may_keep_limits: `False` where it misses one beyond doubt.
            is_disturbed: whether some cell was measured by disturbed runs alone: it may be faster than that.
        """

    def ended(self, candidate_id: str, *, failed: bool, seconds: float | None) -> None:
        """Its trial is over."""

    def proposal(self) -> Candidate | None:
        """The candidate to launch next, `None` when none is worth it as far as is known now."""

    def win_chance(self, candidate_id: str) -> float:
        """Probability that a launched candidate is the best of those launched."""

    def contenders(self) -> tuple[str, ...]:
        """Ids of the launched candidates that may be the best, the likeliest first."""

    def predictions(self) -> tuple[Prediction, ...]:
        """What is expected of those that were not launched."""


class EveryCandidate(Sampler):
    """Launches every candidate, in a given order, and predicts nothing."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._waiting = {candidate.candidate_id: candidate for candidate in candidates}

    @override
    def launched(self, candidate_id: str) -> None:
        self._waiting.pop(candidate_id, None)

    def measured(
        self,
        candidate_id: str,
        rung: int,
        metrics: Metrics,
        *,
        may_keep_limits: bool = True,
        is_disturbed: bool = False,
    ) -> None:
        """Whatever was measured changes nothing."""

    @override
    def ended(self, candidate_id: str, *, failed: bool, seconds: float | None) -> None:
        """Changes nothing: every candidate has its turn."""

    @override
    def proposal(self) -> Candidate | None:
        return next(iter(self._waiting.values()), None)

    def win_chance(self, candidate_id: str) -> float:
        """Unknown, so nobody is without a chance."""
        del candidate_id
        return 1.0

    @override
    def contenders(self) -> tuple[str, ...]:
        """None are named: the records alone decide."""
        return ()

    @override
    def predictions(self) -> tuple[Prediction, ...]:
        return ()
