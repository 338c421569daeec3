"""The search that launches what may win: best expected improvement first, until a miss is improbable.

Knows no Ray and no clock. Decides by what `analysis.metric_models` makes of the measurements.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from kvray.analysis.aggregate import Metrics
from kvray.analysis.axis_values import Array, NumberAxis
from kvray.analysis.evidence import PEAK
from kvray.analysis.metric_models import (
    Figures,
    Measured,
    MetricModels,
    MetricPosterior,
    goodness,
    goodness_weights,
)
from kvray.analysis.pareto import MEMORY_STEP
from kvray.analysis.sampler import ENUMERATED, MISS_CHANCE, Prediction, Sampler
from kvray.analysis.utility_posterior import NEAR
from kvray.candidate import Candidate
from kvray.workload import WorkloadProfile

WIN_CHANCE = 0.05
"""A candidate with a higher chance to be better than the likeliest winner is measured again."""
LEANEST = 2
"""So many by predicted memory are launched though they cannot win, if they are materially leaner: as fallbacks."""


@dataclass
class _Seen:
    """A launched candidate.

    Attributes:
        latest: what it measured so far.
        expected: means and variances of its three logarithms, as they were predicted when it was launched.
        is_contender: whether it may be chosen.
        has_failed: known once its trial has ended.
    """

    latest: Measured | None = None
    expected: tuple[Array, Array] | None = None
    is_contender: bool = True
    has_failed: bool | None = None
    seconds: float | None = None


class BayesianSampler(Sampler):
    """Proposes launches, best expected improvement per √second first, until a miss is improbable.

    Args:
        candidates: the space; the first is the baseline and is launched first.
        forecasts: predicted metrics by candidate id, for those of which there are any.
        numbers: the axes whose values have an order (`number_axes`); those of all others are names.
        seed: of the posterior's samples; the same measurements and seed give the same proposals.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        *,
        profile: WorkloadProfile,
        forecasts: Mapping[str, Figures] | None = None,
        numbers: Sequence[NumberAxis] = (),
        seed: int = 0,
    ) -> None:
        self._candidates = tuple(candidates)
        self._index = {candidate.candidate_id: index for index, candidate in enumerate(self._candidates)}
        self._models = MetricModels(self._candidates, profile, forecasts or {}, numbers)
        self._forecasts = forecasts or {}
        self._weights = goodness_weights(profile)
        self._generator = np.random.default_rng(seed)
        self._seen: dict[int, _Seen] = {}
        self._surprises: list[Array] = []
        self._posterior: MetricPosterior | None = None

    @override
    def launched(self, candidate_id: str) -> None:
        index, posterior = self._index[candidate_id], self._believe()
        expected = None if posterior is None else posterior.expected_measurement(index)
        self._seen.setdefault(index, _Seen(expected=expected))

    def measured(
        self,
        candidate_id: str,
        rung: int,
        metrics: Metrics,
        *,
        may_keep_limits: bool = True,
        is_disturbed: bool = False,
    ) -> None:
        """What was disturbed teaches little, and nothing where an earlier rung was not."""
        index = self._index[candidate_id]
        one = self._seen.setdefault(index, _Seen())
        one.is_contender = may_keep_limits
        if is_disturbed and one.latest is not None and not one.latest.is_disturbed:
            return
        if one.latest is None and one.expected is not None and not is_disturbed:
            means, variances = one.expected
            self._surprises.append((goodness(metrics) - means) ** 2 / variances)
        earlier = one.latest.first if one.latest else None
        latest = Measured(
            index=index,
            rung=rung,
            metrics=metrics,
            first=metrics if rung == 0 and not is_disturbed else earlier,
            is_disturbed=is_disturbed,
        )
        if latest != one.latest:  # a trial's last rung is told when it is complete, and again when the trial has ended
            one.latest, self._posterior = latest, None

    @override
    def ended(self, candidate_id: str, *, failed: bool, seconds: float | None) -> None:
        """What failed is never chosen, and what it measured still teaches."""
        one = self._seen.setdefault(self._index[candidate_id], _Seen())
        one.is_contender, one.has_failed = one.is_contender and not failed, failed
        one.seconds = seconds

    @override
    def proposal(self) -> Candidate | None:
        waiting = self._waiting
        if not waiting:
            return None
        if not self._seen:
            return self._candidates[0]
        posterior = self._believe()
        if posterior is None:
            return self._candidates[self._likely_best(waiting)]
        gains, is_miss = self._gains(posterior, waiting)
        if is_miss.mean() < MISS_CHANCE and len(self._candidates) > ENUMERATED:
            return self._lean_one(posterior, waiting)
        worth = gains.mean(axis=0) * self._likely_to_work(waiting) / np.sqrt(self._seconds(waiting))
        return self._candidates[waiting[int(np.argmax(worth))]]

    @override
    def win_chance(self, candidate_id: str) -> float:
        """1 without rivals."""
        posterior, index = self._believe(), self._index[candidate_id]
        rivals = [other for other in self._contenders if other != index]
        if posterior is None or not rivals:
            return 1.0
        draws = posterior.draw([index, *rivals], self._generator)
        return float((draws[:, 0] > draws[:, 1:].max(axis=1)).mean())

    @override
    def contenders(self) -> tuple[str, ...]:
        posterior, launched = self._believe(), self._contenders
        if posterior is None or not launched:
            return ()
        draws = posterior.draw(launched, self._generator)
        best = int(np.argmax(posterior.utility_means[launched]))
        chances = (draws > draws[:, [best]]).mean(axis=0)
        chances[best] = 1.0
        order = np.argsort(-chances, kind="stable")
        return tuple(self._candidates[launched[place]].candidate_id for place in order if chances[place] > WIN_CHANCE)

    @override
    def predictions(self) -> tuple[Prediction, ...]:
        """The likeliest winners first; empty before anything is measured."""
        posterior, waiting = self._believe(), self._waiting
        if posterior is None or not waiting:
            return ()
        means = posterior.utility_means
        best = means[self._contenders].max() if self._contenders else means.min()
        spreads = np.sqrt(np.diagonal(posterior.utility_covariance(waiting)).clip(1e-18))
        found = [
            self._prediction(index, posterior, behind=float(best - means[index]), spread=float(spread))
            for index, spread in zip(waiting, spreads, strict=True)
        ]
        return tuple(sorted(found, key=lambda one: -one.chance))

    @property
    def _waiting(self) -> list[int]:
        return [index for index in range(len(self._candidates)) if index not in self._seen]

    @property
    def _contenders(self) -> list[int]:
        """Candidates that have measured something and may be chosen."""
        return [index for index, one in self._seen.items() if one.is_contender and one.latest is not None]

    @property
    def _has_peaks(self) -> bool:
        return all(one.latest.metrics.peak_mib is not None for one in self._seen.values() if one.latest is not None)

    def _believe(self) -> MetricPosterior | None:
        """`None` before the first rung of the first trial."""
        seen = [one.latest for one in self._seen.values() if one.latest is not None]
        if self._posterior is None and seen:
            self._posterior = self._models.believe(seen, self._surprises)
        return self._posterior

    def _prediction(self, index: int, posterior: MetricPosterior, *, behind: float, spread: float) -> Prediction:
        ttft, speed, peak = (float(one.mean[index]) for one in posterior.wide)
        return Prediction(
            candidate=self._candidates[index],
            ttft_ms=math.exp(-ttft),
            decode_tok_s=math.exp(speed),
            peak_mib=math.exp(-peak) if self._has_peaks else None,
            low=math.exp(-behind - 1.96 * spread),
            high=math.exp(-behind + 1.96 * spread),
            chance=0.5 * math.erfc((NEAR + behind) / (spread * math.sqrt(2))),
        )

    def _gains(self, posterior: MetricPosterior, waiting: Sequence[int]) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Samples × waiting: by how much each beats everything launched (running ones as predicted); and per sample
        whether one that works beats it by more than `NEAR`."""
        launched = [index for index, one in self._seen.items() if one.is_contender]
        draws = posterior.draw([*waiting, *launched], self._generator)
        best = draws[:, len(waiting) :].max(axis=1) if launched else np.full(len(draws), -np.inf)
        floor = posterior.utility_means.min() - 1.0
        gains = np.maximum(draws[:, : len(waiting)], floor) - np.maximum(best, floor)[:, None]
        works = self._generator.random(gains.shape) < self._likely_to_work(waiting)
        return np.maximum(gains, 0.0), ((gains > NEAR) & works).any(axis=1)

    def _likely_to_work(self, among: Sequence[int]) -> Array:
        """Probability that a launch does not fail: by the worst record of any of its values, one success given."""
        ended = [(index, one) for index, one in self._seen.items() if one.has_failed is not None]
        if not any(one.has_failed for _, one in ended):
            return np.ones(len(among))
        equal = self._models.shared
        launched = [index for index, _ in ended]
        worked = np.array([not one.has_failed for _, one in ended], dtype=float)
        shares = [
            (matrix[among][:, launched] @ worked + 1) / (matrix[among][:, launched].sum(axis=1) + 1) for matrix in equal
        ]
        return np.min(shares, axis=0) if shares else np.ones(len(among))

    def _seconds(self, among: Sequence[int]) -> Array:
        """What a launch takes: the median of those with the same compile mode, of all where there are none."""
        known = [(self._candidates[index], one.seconds) for index, one in self._seen.items() if one.seconds]
        if not known:
            return np.ones(len(among))
        overall = statistics.median(seconds for _, seconds in known)
        return np.array(
            [
                statistics.median(
                    [seconds for other, seconds in known if other.compile is self._candidates[index].compile]
                    or [overall]
                )
                for index in among
            ]
        )

    def _likely_best(self, waiting: Sequence[int]) -> int:
        """By forecast alone; in the space's order without one."""
        forecasts = [self._forecasts.get(self._candidates[index].candidate_id) for index in waiting]
        worth = [-math.inf if one is None else float(self._weights @ goodness(one)) for one in forecasts]
        return waiting[int(np.argmax(worth))]

    def _lean_one(self, posterior: MetricPosterior, waiting: Sequence[int]) -> Candidate | None:
        """One of the `LEANEST` candidates by predicted memory, if it needs less than all that have been measured."""
        if not self._has_peaks:
            return None
        leanness = posterior.wide[PEAK].mean
        measured = max((leanness[index] for index in self._contenders), default=-np.inf)
        for index in np.argsort(-leanness, kind="stable")[:LEANEST]:
            if index in waiting and leanness[index] > measured - math.log1p(-MEMORY_STEP):
                return self._candidates[int(index)]
        return None
