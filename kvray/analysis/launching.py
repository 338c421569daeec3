"""Which candidate is worth a process: the search's decisions, as pure functions of what has been measured.

Knows no Ray and no clock. `sweep.searcher` asks it whenever a slot is free, `sweep.scheduler` after every rung.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kvray.analysis.aggregate import Metrics
from kvray.analysis.surrogate import PRIORS, Array, AxisModel, Observations, Posterior
from kvray.candidate import Candidate
from kvray.workload import Limits, WorkloadProfile

MISS = math.log(1.02)
"""Difference in utility worth another launch: 2 %."""
MISS_CHANCE = 0.02
"""The search ends when the chance is smaller that anything not launched beats the best by more than `MISS`."""
WIN_CHANCE = 0.05
"""Of being better than the likeliest winner: who has more is measured again."""
ENUMERATED = 12
"""A space of so many candidates is launched as a whole: there is little to save."""
MODESTY = 1.6
"""Factor on every predicted variance: the scales are fitted, not known (`benchmarks/search_cost.py`)."""
SAMPLES = 512
LEANEST = 2
LEANER = 0.02
"""Share of memory that a fallback must save to be one (see `analysis.fallback`)."""


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
            f"{self.high:.2f} times the best one's (95 %); chance to beat that by more than 2 %: {chance}"
        )


class Figures(Protocol):
    """Measured or predicted: `Metrics` and `Forecast` both are."""

    @property
    def ttft_ms(self) -> float | None:
        """Time to the first token; `None` in a forecast for a device that was not measured."""

    @property
    def decode_tok_s(self) -> float | None:
        """Decode throughput; `None` likewise."""

    @property
    def peak_mib(self) -> float | None:
        """Peak memory."""


class Launches(Protocol):
    """What a search asks and tells; told of the running ones too."""

    def launched(self, candidate_id: str) -> None:
        """A process was started for it."""

    def measured(self, candidate_id: str, rung: int, metrics: Metrics, *, keeps_limits: bool = True) -> None:
        """It completed `rung`."""

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


class EveryCandidate:
    """Launches all, in a given order, and believes nothing."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._waiting = {candidate.candidate_id: candidate for candidate in candidates}

    def launched(self, candidate_id: str) -> None:
        """See `Launches`."""
        self._waiting.pop(candidate_id, None)

    def measured(self, candidate_id: str, rung: int, metrics: Metrics, *, keeps_limits: bool = True) -> None:
        """See `Launches`."""

    def ended(self, candidate_id: str, *, failed: bool, seconds: float | None) -> None:
        """See `Launches`."""

    def proposal(self) -> Candidate | None:
        """See `Launches`."""
        return next(iter(self._waiting.values()), None)

    def win_chance(self, candidate_id: str) -> float:
        """Unknown, so nobody is without a chance."""
        del candidate_id
        return 1.0

    def contenders(self) -> tuple[str, ...]:
        """See `Launches`; the records alone decide."""
        return ()

    def predictions(self) -> tuple[Prediction, ...]:
        """See `Launches`."""
        return ()


@dataclass
class _Seen:
    """A launched candidate.

    Attributes:
        metrics: at its latest `rung`; `first` are those of rung 0.
        expected: means and variances of its three logarithms, as they were predicted when it was launched.
        is_contender: whether it may be chosen.
        has_failed: known once its trial has ended.
    """

    rung: int | None = None
    metrics: Metrics | None = None
    first: Metrics | None = None
    expected: tuple[Array, Array] | None = None
    is_contender: bool = True
    has_failed: bool | None = None
    seconds: float | None = None


class AxisSearch:
    """Proposes launches, best expected improvement per √second first, until a miss is improbable.

    Args:
        candidates: the space; the first is the baseline and is launched first.
        forecasts: predicted metrics by candidate id, for those of which there are any.
        seed: of the posterior's samples; the same measurements and seed give the same proposals.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        *,
        profile: WorkloadProfile,
        forecasts: Mapping[str, Figures] | None = None,
        seed: int = 0,
    ) -> None:
        self._candidates = tuple(candidates)
        self._index = {candidate.candidate_id: index for index, candidate in enumerate(self._candidates)}
        self._limits = profile.limits
        self._weights = np.array([profile.weight_ttft, profile.weight_throughput, profile.weight_memory])
        self._forecasts = forecasts or {}
        self._models = [
            AxisModel(self._candidates, prior, self._forecast(metric)) for metric, prior in enumerate(PRIORS)
        ]
        self._generator = np.random.default_rng(seed)
        self._seen: dict[int, _Seen] = {}
        self._starts: list[Array | None] = [None] * len(PRIORS)
        self._plain: tuple[Posterior, ...] = ()
        self._posterior: tuple[Posterior, ...] | None = None
        self._surprises: list[Array] = []

    def launched(self, candidate_id: str) -> None:
        """A process was started for it."""
        index = self._index[candidate_id]
        posterior = self._predict()
        expected = None
        if posterior is not None:
            known = [(one.mean[index], one.covariance[index, index] + one.noise) for one in self._plain]
            means, variances = zip(*known, strict=True)
            expected = np.array(means), np.array(variances)
        self._seen.setdefault(index, _Seen(expected=expected))

    def measured(self, candidate_id: str, rung: int, metrics: Metrics, *, keeps_limits: bool = True) -> None:
        """It completed `rung`."""
        one = self._seen.setdefault(self._index[candidate_id], _Seen())
        if one.metrics is None and one.expected is not None:
            self._surprises.append((_goodness(metrics) - one.expected[0]) ** 2 / one.expected[1])
        one.rung, one.metrics, one.is_contender = rung, metrics, keeps_limits
        if rung == 0:
            one.first = metrics
        self._posterior = None

    def ended(self, candidate_id: str, *, failed: bool, seconds: float | None) -> None:
        """Its trial is over; what failed is never chosen, and what it measured still teaches."""
        one = self._seen.setdefault(self._index[candidate_id], _Seen())
        one.is_contender, one.has_failed = one.is_contender and not failed, failed
        one.seconds = seconds

    def proposal(self) -> Candidate | None:
        """The candidate to launch next, `None` when none is worth it."""
        waiting = [index for index in range(len(self._candidates)) if index not in self._seen]
        if not waiting:
            return None
        if not self._seen:
            return self._candidates[0]
        posterior = self._predict()
        if posterior is None:
            return self._candidates[self._likely_best(waiting)]
        gains, is_miss = self._gains(posterior, waiting)
        if is_miss.mean() < MISS_CHANCE and len(self._candidates) > ENUMERATED:
            return self._lean_one(posterior, waiting)
        worth = gains.mean(axis=0) * self._likely_to_work(waiting) / np.sqrt(self._seconds(waiting))
        return self._candidates[waiting[int(np.argmax(worth))]]

    def win_chance(self, candidate_id: str) -> float:
        """Probability that a launched candidate is the best of those launched; 1 without rivals."""
        posterior = self._predict()
        index = self._index[candidate_id]
        rivals = [other for other, one in self._seen.items() if one.is_contender and one.metrics and other != index]
        if posterior is None or not rivals:
            return 1.0
        draws = self._draw(posterior, [index, *rivals])
        return float((draws[:, 0] > draws[:, 1:].max(axis=1)).mean())

    def contenders(self) -> tuple[str, ...]:
        """Ids of the launched candidates that may be the best, the likeliest first."""
        posterior = self._predict()
        launched = [index for index, one in self._seen.items() if one.is_contender and one.metrics is not None]
        if posterior is None or not launched:
            return ()
        draws = self._draw(posterior, launched)
        best = int(np.argmax(self._utility_mean(posterior)[launched]))
        chances = (draws > draws[:, [best]]).mean(axis=0)
        chances[best] = 1.0
        order = np.argsort(-chances, kind="stable")
        return tuple(self._candidates[launched[place]].candidate_id for place in order if chances[place] > WIN_CHANCE)

    def predictions(self) -> tuple[Prediction, ...]:
        """Of all that was not launched, the likeliest to be missed first; empty before anything is measured."""
        waiting = [index for index in range(len(self._candidates)) if index not in self._seen]
        posterior = self._predict()
        if posterior is None or not waiting:
            return ()
        best = self._best_utility(posterior)
        mean = self._utility_mean(posterior)[waiting] - best
        spread = np.sqrt(np.diagonal(self._utility_covariance(posterior, waiting)).clip(0))
        found = [
            Prediction(
                candidate=self._candidates[index],
                ttft_ms=math.exp(-posterior[0].mean[index]),
                decode_tok_s=math.exp(posterior[1].mean[index]),
                peak_mib=math.exp(-posterior[2].mean[index]) if self._has_peaks else None,
                low=math.exp(mean[place] - 1.96 * spread[place]),
                high=math.exp(mean[place] + 1.96 * spread[place]),
                chance=_upper_tail((MISS - mean[place]) / max(spread[place], 1e-9)),
            )
            for place, index in enumerate(waiting)
        ]
        return tuple(sorted(found, key=lambda one: -one.chance))

    @property
    def _has_peaks(self) -> bool:
        return all(one.metrics.peak_mib is not None for one in self._seen.values() if one.metrics is not None)

    def _forecast(self, metric: int) -> Array | None:
        known = [self._forecasts.get(candidate.candidate_id) for candidate in self._candidates]
        if any(one is None for one in known):
            return None
        logs = np.array([_goodness(one) for one in known if one is not None])
        return logs[:, metric]

    def _predict(self) -> tuple[Posterior, ...] | None:
        """The posterior of each metric; `None` before the first rung of the first trial."""
        if self._posterior is None:
            seen = [(index, one) for index, one in self._seen.items() if one.metrics is not None]
            if not seen:
                return None
            logs = self._logs([one for _, one in seen])
            at = np.array([index for index, _ in seen])
            is_first = np.array([one.rung == 0 for _, one in seen])
            self._plain = tuple(
                model.fit(Observations(at=at, values=logs[:, metric], is_first_rung=is_first), self._starts[metric])
                for metric, model in enumerate(self._models)
            )
            self._starts = [one.scales for one in self._plain]
            factors = _widening(self._surprises)
            self._posterior = tuple(one.widened(factor) for one, factor in zip(self._plain, factors, strict=True))
        return self._posterior

    def _logs(self, seen: Sequence[_Seen]) -> Array:
        """Measurements as k × 3 logarithms; those of rung 0 moved by what lies between rung 0 and full length."""
        logs = np.array([_goodness(one.metrics) for one in seen if one.metrics is not None])
        moves = [
            _goodness(one.metrics) - _goodness(one.first)
            for one in seen
            if one.rung and one.first is not None and one.metrics is not None
        ]
        if moves:
            is_first = np.array([one.rung == 0 for one in seen])
            logs[is_first] += np.median(moves, axis=0)
        return logs

    def _utility_mean(self, posterior: Sequence[Posterior]) -> Array:
        return np.asarray(sum(weight * one.mean for weight, one in zip(self._weights, posterior, strict=True)))

    def _utility_covariance(self, posterior: Sequence[Posterior], among: Sequence[int]) -> Array:
        rows = np.ix_(among, among)
        return np.asarray(
            sum(weight**2 * one.covariance[rows] for weight, one in zip(self._weights, posterior, strict=True))
        )

    def _best_utility(self, posterior: Sequence[Posterior]) -> float:
        contenders = [index for index, one in self._seen.items() if one.is_contender and one.metrics is not None]
        mean = self._utility_mean(posterior)
        return float(mean[contenders].max()) if contenders else float(mean.min())

    def _draw(self, posterior: Sequence[Posterior], among: Sequence[int]) -> Array:
        """Samples × candidates: utilities, `-inf` where a limit is missed."""
        if not _limits_speed_or_memory(self._limits):
            covariance = self._utility_covariance(posterior, among)
            return self._utility_mean(posterior)[among] + self._normal(covariance)
        metrics = [one.mean[among] + self._normal(one.covariance[np.ix_(among, among)]) for one in posterior]
        utilities = sum(weight * draws for weight, draws in zip(self._weights, metrics, strict=True))
        batch_sizes = np.array([float(self._candidates[index].batch_size) for index in among])
        return np.where(_may_keep_limits(metrics, batch_sizes, self._limits), utilities, -np.inf)

    def _normal(self, covariance: Array) -> Array:
        values, vectors = np.linalg.eigh(covariance)
        normal = self._generator.standard_normal((SAMPLES, len(covariance)))
        return np.asarray((normal * np.sqrt(values.clip(0))) @ vectors.T)

    def _gains(self, posterior: Sequence[Posterior], waiting: Sequence[int]) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Samples × waiting: by how much each beats everything launched (running ones as predicted); and per sample
        whether one that works beats it by more than `MISS`."""
        launched = [index for index, one in self._seen.items() if one.is_contender]
        draws = self._draw(posterior, [*waiting, *launched])
        best = draws[:, len(waiting) :].max(axis=1) if launched else np.full(len(draws), -np.inf)
        floor = self._utility_mean(posterior).min() - 1.0
        gains = np.maximum(draws[:, : len(waiting)], floor) - np.maximum(best, floor)[:, None]
        works = self._generator.random(gains.shape) < self._likely_to_work(waiting)
        return np.maximum(gains, 0.0), ((gains > MISS) & works).any(axis=1)

    def _likely_to_work(self, among: Sequence[int]) -> Array:
        """Probability that a launch does not fail: by the worst record of any of its values, one success given."""
        ended = [(index, one) for index, one in self._seen.items() if one.has_failed is not None]
        if not any(one.has_failed for _, one in ended):
            return np.ones(len(among))
        equal = self._models[0].shared
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
        worth = [-math.inf if one is None else float(self._weights @ _goodness(one)) for one in forecasts]
        return waiting[int(np.argmax(worth))]

    def _lean_one(self, posterior: Sequence[Posterior], waiting: Sequence[int]) -> Candidate | None:
        """One of the `LEANEST` candidates by predicted memory, if it needs less than all that have been measured."""
        if not self._has_peaks:
            return None
        order = np.argsort(-posterior[2].mean, kind="stable")[:LEANEST]
        leanest = max(
            (posterior[2].mean[index] for index, one in self._seen.items() if one.is_contender), default=-np.inf
        )
        for index in order:
            if index in waiting and posterior[2].mean[index] > leanest - math.log1p(-LEANER):
                return self._candidates[int(index)]
        return None


def _widening(surprises: Sequence[Array]) -> Array:
    """Per metric, the factor on predicted variances.

    `surprises` are squared standardised residuals of what was launched against what had been predicted then. Their mean
    is 1 where the model is right, within √(2/n); beyond that the model is surer than it is right by what is left.
    """
    if not surprises:
        return np.full(len(PRIORS), MODESTY)
    excess = np.mean(surprises, axis=0) / (1 + math.sqrt(2 / len(surprises)))
    return np.asarray(MODESTY * np.maximum(1.0, excess))


def _goodness(metrics: Figures) -> Array:
    """ln(1/TTFT), ln(tok/s), ln(1/peak); 0 for what is not known."""
    return np.array(
        [
            -math.log(metrics.ttft_ms or 1.0),
            math.log(metrics.decode_tok_s or 1.0),
            -math.log(metrics.peak_mib or 1.0),
        ]
    )


def _limits_speed_or_memory(limits: Limits) -> bool:
    return any(
        value is not None
        for value in (limits.max_ttft_ms, limits.max_itl_ms, limits.min_decode_tok_s, limits.max_peak_mib)
    )


def _may_keep_limits(metrics: Sequence[Array], batch_sizes: Array, limits: Limits) -> npt.NDArray[np.bool_]:
    """Whether means over cells, given as goodness, keep the limits, which hold in every cell: true of some that do not,
    false of none that does. A mean ITL is taken for its 95th percentile."""
    keeps = np.ones_like(metrics[0], dtype=bool)
    if limits.max_ttft_ms is not None:
        keeps &= metrics[0] >= -math.log(limits.max_ttft_ms)
    if limits.min_decode_tok_s is not None:
        keeps &= metrics[1] >= math.log(limits.min_decode_tok_s)
    if limits.max_itl_ms is not None:
        keeps &= metrics[1] >= np.log(1000 * batch_sizes / limits.max_itl_ms)
    if limits.max_peak_mib is not None:
        keeps &= metrics[2] >= -math.log(limits.max_peak_mib)
    return keeps


def _upper_tail(distance: float) -> float:
    return 0.5 * math.erfc(distance / math.sqrt(2))
