"""From records to a decision, as pure functions: no clock, no file, no randomness but a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvray.analysis.confidence import Confidence, estimate_confidence
from kvray.analysis.fallback import Fallback, fallback_chain
from kvray.analysis.ranking import Gain, Ranking, rank
from kvray.record import TrialResult
from kvray.workload import WorkloadProfile


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that plan and report need to know of a sweep."""

    ranking: Ranking
    confidence: Confidence | None
    fallbacks: tuple[Fallback, ...]


def analyse(results: Sequence[TrialResult], profile: WorkloadProfile, *, seed: int = 0) -> Analysis:
    """Rank the trials of one sweep, choose, say how sure that is, and what to use when the winner does not fit.

    The chosen one is first in the ranking, also where another that cannot be told apart from it measured better. Its
    gain is that of the confirming rounds, if it has any. `seed` is that of the draws; the order of `results` does not
    matter.
    """
    ranking = rank(results, profile)
    confidence = estimate_confidence(ranking, results, profile, seed=seed)
    if confidence is not None:
        ranking = ranking.led_by(confidence.choice.candidate_id, _confirmed_gain(ranking, confidence))
    return Analysis(ranking=ranking, confidence=confidence, fallbacks=fallback_chain(ranking))


def _confirmed_gain(ranking: Ranking, confidence: Confidence) -> Gain | None:
    """`None` where no confirming round measured winner and baseline. Memory does not differ between rounds."""
    if not confidence.confirm_rounds or confidence.ttft_gain is None or confidence.throughput_gain is None:
        return None
    chosen = next(one for one in ranking.entries if one.record.candidate_id == confidence.choice.candidate_id)
    return Gain(
        ttft=confidence.ttft_gain.value,
        throughput=confidence.throughput_gain.value,
        memory=chosen.gain.memory if chosen.gain else None,
    )
