"""From records to a decision, as pure functions: no clock, no file, no randomness but a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvray.analysis.confidence import Confidence, estimate_confidence
from kvray.analysis.fallback import Fallback, fallback_chain
from kvray.analysis.ranking import Ranking, rank
from kvray.record import TrialResult
from kvray.workload import WorkloadProfile


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that plan and report need to know of a sweep."""

    ranking: Ranking
    confidence: Confidence | None
    fallbacks: tuple[Fallback, ...]


def analyse(results: Sequence[TrialResult], profile: WorkloadProfile, *, seed: int = 0) -> Analysis:
    """Rank the trials of one sweep, say how sure that is, and what to use when the winner does not fit.

    `seed` is the bootstrap's; the order of `results` does not matter.
    """
    ranking = rank(results, profile)
    return Analysis(
        ranking=ranking,
        confidence=estimate_confidence(ranking, results, profile, seed=seed),
        fallbacks=fallback_chain(ranking),
    )
