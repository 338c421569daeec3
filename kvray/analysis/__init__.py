"""From records to a decision, as pure functions: no clock, no file, no randomness but a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from kvray.analysis.confidence import Confidence, estimate_confidence
from kvray.analysis.engine_best import EngineBest, best_of_each_engine
from kvray.analysis.evidence import gather_evidence
from kvray.analysis.fallback import Fallback, fallback_chain
from kvray.analysis.pooling import pool_complete_trials
from kvray.analysis.ranking import Ranking, rank
from kvray.record import TrialResult
from kvray.workload import WorkloadProfile


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that plan and report need to know of a sweep.

    Attributes:
        engines: what is to be said of each engine, where there are several.
    """

    ranking: Ranking
    confidence: Confidence | None
    fallbacks: tuple[Fallback, ...]
    engines: tuple[EngineBest, ...] = ()


def analyse(
    results: Sequence[TrialResult],
    profile: WorkloadProfile,
    *,
    seed: int = 0,
    defaults: Mapping[str, str] = MappingProxyType({}),
) -> Analysis:
    """Rank the trials of one sweep, choose, say how sure that is, and what to use when the winner does not fit.

    The chosen one is first in the ranking, also where another that cannot be told apart from it measured better. Gains
    in the ranking rest on all processes alike; those of the confirming rounds are in `confidence`. `seed` is that of
    the draws; the order of `results` does not matter.

    Args:
        defaults: by engine, the candidate id of what it does with nothing set.
    """
    pools = pool_complete_trials(results, profile)
    evidence = gather_evidence(results, profile, pools)
    ranking = rank(results, profile, evidence, pools)
    confidence = estimate_confidence(ranking, results, profile, seed=seed, evidence=evidence)
    if confidence is not None:
        ranking = ranking.led_by(confidence.choice.candidate_id)
    return Analysis(
        ranking=ranking,
        confidence=confidence,
        fallbacks=fallback_chain(ranking),
        engines=best_of_each_engine(ranking, evidence, defaults),
    )
