"""Order of the candidates: complete ones by score, all others listed with the reason why they are not ranked."""

from __future__ import annotations

from dataclasses import dataclass

from kvray.analysis.aggregate import CellMetrics, Metrics
from kvray.record import TrialRecord


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A candidate against the baseline; 0.10 means 10 % better (faster first token, more tok/s, less memory)."""

    ttft: float
    throughput: float
    memory: float | None


@dataclass(frozen=True, kw_only=True)
class RankedCandidate:
    """One complete candidate.

    Attributes:
        rank: 1 is the winner.
        score: `100 * exp(utility - ideal utility)`; 100 would be the best of every metric at once.
        utility: weighted sum of logarithms (DESIGN: section 6).
        gain: against the baseline; `None` when there is no complete baseline.
        on_pareto_front: no other ranked candidate is at least as good in TTFT, throughput and memory and better in one.
        break_even_tokens: generated tokens after which cold costs beyond the baseline's are earned back;
            0 if there are none, `None` if they never are or cannot be told.
    """

    rank: int
    record: TrialRecord
    score: float
    utility: float
    metrics: Metrics
    cells: tuple[CellMetrics, ...]
    gain: Gain | None
    on_pareto_front: bool
    break_even_tokens: float | None


@dataclass(frozen=True, kw_only=True)
class UnrankedTrial:
    """A trial that is listed and not ranked: it failed, was stopped or rejected, lacks a cell, or misses a limit."""

    record: TrialRecord
    reason: str


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """All trials of a sweep, best first, then those without a rank."""

    entries: tuple[RankedCandidate, ...]
    unranked: tuple[UnrankedTrial, ...]

    @property
    def winner(self) -> RankedCandidate:
        """The first entry. Only call it when there are entries."""
        return self.entries[0]
