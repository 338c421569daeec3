"""Optuna's sampler as a source of launches, through Ray Tune's integration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from kvray.analysis.aggregate import Metrics
from kvray.analysis.axis_values import axis_points
from kvray.analysis.sampler import EveryCandidate
from kvray.analysis.score import utility
from kvray.candidate import Candidate
from kvray.workload import WorkloadProfile

UTILITY = "utility"
MOST_REFUSALS = 50
"""Successive proposals of no candidate, or of a launched one, before the next of the space is taken."""


class OptunaSampler(EveryCandidate):
    """Launches what Optuna's sampler (TPE) proposes; points that are no candidate, or launched, are answered at once.

    Args:
        candidates: the space, the baseline first: it is launched first.
    """

    def __init__(self, candidates: Sequence[Candidate], *, profile: WorkloadProfile, seed: int) -> None:
        super().__init__(candidates)
        self._profile = profile
        points = axis_points(candidates)
        self._by_point = dict(zip(points, candidates, strict=True))
        self._points = {one.candidate_id: point for one, point in zip(candidates, points, strict=True)}
        self._utilities: dict[str, float | None] = {}
        self._asked: dict[str, str] = {}
        self._count = 0
        self._sampler = _make_sampler(list(self._by_point), seed)

    def measured(
        self,
        candidate_id: str,
        rung: int,
        metrics: Metrics,
        *,
        may_keep_limits: bool = True,
        is_disturbed: bool = False,
    ) -> None:
        """Remember what the sampler is told when the trial has ended; what was disturbed counts as it was measured."""
        del rung, is_disturbed
        self._utilities[candidate_id] = utility(metrics, self._profile) if may_keep_limits else None

    @override
    def ended(self, candidate_id: str, *, failed: bool, seconds: float | None) -> None:
        del seconds
        if failed:
            self._utilities[candidate_id] = None
        if (trial_id := self._asked.pop(candidate_id, None)) is not None:
            self._answer(trial_id, self._utilities.get(candidate_id))

    @override
    def proposal(self) -> Candidate | None:
        first = super().proposal()
        if first is None or not self._points_launched():
            return first
        for _ in range(MOST_REFUSALS):
            trial_id = f"{self._count}"
            self._count += 1
            point = self._sampler.suggest(trial_id)
            candidate = self._by_point.get(tuple(point[name] for name in sorted(point)))
            if candidate is not None and candidate.candidate_id in self._waiting:
                self._asked[candidate.candidate_id] = trial_id
                return candidate
            self._answer(trial_id, None if candidate is None else self._utilities.get(candidate.candidate_id))
        return first

    def _points_launched(self) -> bool:
        return len(self._waiting) < len(self._points)

    def _answer(self, trial_id: str, value: float | None) -> None:
        if value is None:
            self._sampler.on_trial_complete(trial_id, error=True)
        else:
            self._sampler.on_trial_complete(trial_id, result={UTILITY: value})


def _make_sampler(points: Sequence[tuple[str, ...]], seed: int) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    axes = {f"{place:02d}": sorted(set(values)) for place, values in enumerate(zip(*points, strict=True))}
    space = {name: optuna.distributions.CategoricalDistribution(values) for name, values in axes.items()}
    return OptunaSearch(space=space, metric=UTILITY, mode="max", seed=seed)
