"""The nearest misses: of the candidates that do not keep the limits, those that come closest."""

from __future__ import annotations

from dataclasses import dataclass

from kvray.analysis.limits import Miss, missed_limits, missed_quality
from kvray.analysis.ranking import Ranking, UnrankedTrial
from kvray.record import TrialRecord, TrialStatus
from kvray.workload import Limits

MAX_NEAREST = 3


@dataclass(frozen=True, kw_only=True)
class NearMiss:
    """A candidate and the limits that it misses, at least one.

    Attributes:
        is_complete: whether every cell was measured. Where the loss of quality ended the trial, the other limits were
            not checked.
    """

    record: TrialRecord
    misses: tuple[Miss, ...]
    is_complete: bool

    @property
    def text(self) -> str:
        """What it misses, and by how much."""
        told = "; ".join(miss.text for miss in self.misses)
        return told if self.is_complete else f"{told}; its other limits were not checked"

    @property
    def order(self) -> tuple[bool, float, int, str]:
        """By the limit that is missed most; what was measured completely goes first."""
        farthest = max(miss.factor for miss in self.misses)
        return not self.is_complete, farthest, len(self.misses), self.record.candidate.label


def nearest_misses(ranking: Ranking, limits: Limits, *, at_most: int = MAX_NEAREST) -> tuple[NearMiss, ...]:
    """The candidates that miss `limits`, nearest first; empty if none does, as where all failed otherwise."""
    found: dict[str, NearMiss] = {}
    for trial in ranking.unranked:
        near = _near_miss(trial, limits)
        if near.misses:
            found.setdefault(trial.record.candidate_id, near)
    return tuple(sorted(found.values(), key=lambda near: near.order)[:at_most])


def _near_miss(trial: UnrankedTrial, limits: Limits) -> NearMiss:
    if trial.record.status is TrialStatus.QUALITY:
        return NearMiss(record=trial.record, misses=missed_quality(trial.record, limits), is_complete=False)
    misses = trial.misses or (missed_limits(trial.record, trial.cells, limits) if trial.cells else ())
    return NearMiss(record=trial.record, misses=misses, is_complete=True)
