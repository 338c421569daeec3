"""Among candidates that cannot be told apart: the leaner one, else the simpler one."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, fields

from kvray.analysis.pareto import MEMORY_STEP
from kvray.analysis.standing import Standing
from kvray.candidate import CacheStrategy, Candidate, CompileMode

WORSE_CHANCE = 0.1
"""Of being more than 2 % worse than the leader: who has less may be chosen for being leaner or simpler. An expected
loss says less: where noise is large it is small between candidates of which one is much the better."""

Complexity = tuple[int, bool, bool]


class Reason(enum.StrEnum):
    """Why a candidate is chosen."""

    BEST = "best"
    LEANER = "leaner"
    SIMPLER = "simpler"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is recommended.

    Attributes:
        over: the leader that it cannot be told apart from and is preferred to; itself when it is the leader.
    """

    candidate_id: str
    over: str
    reason: Reason


def choose(standing: Standing, peaks_mib: Mapping[str, float | None], complexities: Mapping[str, Complexity]) -> Choice:
    """The leader, or one that ties with it, is hardly more than 2 % worse, and is leaner or as lean and simpler.

    Leaner is one that peaks at least 2 % lower than the leader.
    """
    leader, means = standing.leader, standing.means
    near = [leader, *(key for key in standing.ties(leader) if standing.worse_share(key, leader) <= WORSE_CHANCE)]
    lean = _leanest(near, peaks_mib)
    best = min(lean, key=lambda key: (complexities[key], -means[key], key))
    if best == leader:
        return Choice(candidate_id=best, over=leader, reason=Reason.BEST)
    return Choice(candidate_id=best, over=leader, reason=Reason.SIMPLER if leader in lean else Reason.LEANER)


def complexity(candidate: Candidate, baseline: Candidate | None) -> Complexity:
    """Less is simpler: fields that differ from the baseline, then whether it has another cache than the plain dynamic
    one, then whether it compiles."""
    different = sum(
        getattr(candidate, spec.name) != getattr(baseline, spec.name) for spec in fields(Candidate) if baseline
    )
    return different, candidate.cache is not CacheStrategy.DYNAMIC, candidate.compile is not CompileMode.OFF


def _leanest(ids: list[str], peaks_mib: Mapping[str, float | None]) -> list[str]:
    """Those whose peak is within 2 % of the lowest; all where a peak is not known."""
    known = {key: peak for key in ids if (peak := peaks_mib[key]) is not None}
    if len(known) < len(ids):
        return ids
    return [key for key in ids if min(known.values()) > (1 - MEMORY_STEP) * known[key]]
