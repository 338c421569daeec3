"""Which candidate is recommended: the baseline unless something is measurably better; of ties the leaner or simpler."""

from __future__ import annotations

import enum
from collections.abc import Container, Mapping, Set
from dataclasses import dataclass, fields

from kvray.analysis.pareto import MEMORY_STEP
from kvray.analysis.ranking import Gain
from kvray.analysis.utility_posterior import UtilityPosterior
from kvray.candidate import CacheStrategy, Candidate, CompileMode
from kvray.lazy import ChosenLater

WORSE_CHANCE = 0.1
"""A leaner or simpler tie is chosen if the chance that it is more than 2 % worse than the leader is at most this. An
expected loss would not do: where noise is large it is small even between candidates of which one is much better."""
SURE = 0.95
"""Share of the draws in which a candidate must score higher than the baseline before a change is recommended."""

Complexity = tuple[int, bool, bool]


class Reason(enum.StrEnum):
    """Why a candidate is chosen."""

    BEST = "best"
    LEANER = "leaner"
    SIMPLER = "simpler"
    SURER = "surer"
    NO_GAIN = "no gain"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is recommended.

    Attributes:
        over: the candidate that leads, to which this one is preferred; itself when it is the leader.
    """

    candidate_id: str
    over: str
    reason: Reason


def choose(
    posterior: UtilityPosterior,
    peaks_mib: Mapping[str, float | None],
    complexities: Mapping[str, Complexity],
    *,
    baseline_id: str | None = None,
    better: Container[str] = (),
) -> Choice:
    """The leader, or a tie that is hardly more than 2 % worse and is leaner, or as lean and simpler.

    Leaner means a peak at least 2 % below the leader's.

    Args:
        baseline_id: what is kept unless another is `better`; `None` where it is not among the contenders.
        better: ids that are `better_than_baseline`.
    """
    leader, means = posterior.leader, posterior.means

    def is_eligible(key: str) -> bool:
        return baseline_id is None or key in better

    near = [leader, *(key for key in posterior.ties(leader) if posterior.worse_share(key, leader) <= WORSE_CHANCE)]
    near = [key for key in near if is_eligible(key)]
    if not near and leader == baseline_id:
        return Choice(candidate_id=leader, over=leader, reason=Reason.BEST)
    best_first = sorted(posterior.ids, key=lambda key: (means[key], key), reverse=True) if not near else []
    surest = next(filter(is_eligible, best_first), None)
    if not near and surest is None:
        return Choice(candidate_id=baseline_id or leader, over=leader, reason=Reason.NO_GAIN)
    lean = [surest] if surest else _leanest(near, peaks_mib)
    best = min(lean, key=lambda key: (complexities[key], -means[key], key))
    return Choice(candidate_id=best, over=leader, reason=_reason(best, leader, near, peaks_mib))


def better_than_baseline(posterior: UtilityPosterior, baseline_id: str, gains: Mapping[str, Gain]) -> Set[str]:
    """Candidates that are worth a change: their score is surely higher and something of theirs measurably better, or
    they need less memory and are hardly more than 2 % worse."""

    def is_better(key: str) -> bool:
        gain = gains[key]
        return _scores_higher(posterior, key, baseline_id, gain) or _is_leaner(posterior, key, baseline_id, gain)

    return ChosenLater((key for key in gains if key != baseline_id), is_better)


def complexity(candidate: Candidate, baseline: Candidate | None) -> Complexity:
    """Less is simpler: fields and settings that differ from the baseline, then whether it has another cache than the
    plain dynamic one, then whether it compiles."""
    different = 0 if baseline is None else _differences(candidate, baseline)
    return different, candidate.cache is not CacheStrategy.DYNAMIC, candidate.compile is not CompileMode.OFF


_SHARED = tuple(spec.name for spec in fields(Candidate) if spec.name != "settings")


def _differences(one: Candidate, other: Candidate) -> int:
    ours, theirs = dict(one.settings), dict(other.settings)
    own = [ours.get(name) != theirs.get(name) for name in ours.keys() | theirs.keys()]
    return sum(own) + sum(bool(getattr(one, name) != getattr(other, name)) for name in _SHARED)


def _scores_higher(posterior: UtilityPosterior, key: str, baseline_id: str, gain: Gain) -> bool:
    return gain.is_measurable and posterior.better_share(key, baseline_id) >= SURE


def _is_leaner(posterior: UtilityPosterior, key: str, baseline_id: str, gain: Gain) -> bool:
    return gain.saves_memory and posterior.worse_share(key, baseline_id) <= WORSE_CHANCE


def _reason(best: str, leader: str, near: list[str], peaks_mib: Mapping[str, float | None]) -> Reason:
    if best == leader:
        return Reason.BEST
    if leader not in _leanest([leader, best], peaks_mib):
        return Reason.LEANER
    return Reason.SIMPLER if leader in near else Reason.SURER


def _leanest(ids: list[str], peaks_mib: Mapping[str, float | None]) -> list[str]:
    """The candidates whose peak is within 2 % of the lowest; all where a peak is not known."""
    known = {key: peak for key in ids if (peak := peaks_mib[key]) is not None}
    if len(known) < len(ids):
        return ids
    return [key for key in ids if min(known.values()) > (1 - MEMORY_STEP) * known[key]]
