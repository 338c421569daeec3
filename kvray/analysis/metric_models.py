"""What the search predicts of every candidate, launched or not: a Gaussian process over the axes for each metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kvray.analysis.aggregate import Metrics
from kvray.analysis.axis_values import Array, NumberAxis
from kvray.analysis.engine_noise import engine_codes
from kvray.analysis.score import utility_weights
from kvray.analysis.surrogate import PRIORS, AxisModel, Observations, Posterior
from kvray.candidate import Candidate
from kvray.workload import Limits, WorkloadProfile

MODESTY = 1.6
"""Factor on every predicted variance: the scales are fitted, not known (`benchmarks/search_cost.py`)."""
SAMPLES = 512
_FEWEST_MOVES = 3
"""Candidates of an engine that must have gone beyond rung 0 before its own move to full length is believed: that of one
or two is mostly noise."""
DISTURBED_SD = np.array([0.5, 0.5, 0.0])
"""Further noise of what was measured by disturbed runs alone, per metric: mostly they take half as long again, now and
then several times as long. Memory stays the same."""


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


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a candidate, the `index`-th of the space, has measured.

    Attributes:
        metrics: at its latest `rung`.
        first: at rung 0, where that was not disturbed.
        is_disturbed: whether some cell of the rung was measured by disturbed runs alone.
    """

    index: int
    rung: int
    metrics: Metrics
    first: Metrics | None
    is_disturbed: bool = False


@dataclass(frozen=True, kw_only=True)
class MetricPosterior:
    """Joint predictions for n candidates.

    Attributes:
        plain: per metric (ln 1/TTFT, ln tok/s, ln 1/peak), as the model says.
        wide: the same, widened by how often the model was surprised: what decisions rest on.
        weights: of the three in the utility.
        batch_sizes: n.
        gpus: n; over which each candidate is spread.
    """

    plain: tuple[Posterior, ...]
    wide: tuple[Posterior, ...]
    weights: Array
    batch_sizes: Array
    gpus: Array
    limits: Limits

    @property
    def utility_means(self) -> Array:
        """n expected utilities."""
        return np.asarray(sum(weight * one.mean for weight, one in zip(self.weights, self.wide, strict=True)))

    def utility_covariance(self, among: Sequence[int]) -> Array:
        """Covariance of the utilities of some candidates. The metrics are modelled independently of each other."""
        rows = np.ix_(among, among)
        return np.asarray(
            sum(weight**2 * one.covariance[rows] for weight, one in zip(self.weights, self.wide, strict=True))
        )

    def expected_measurement(self, index: int) -> tuple[Array, Array]:
        """Means and variances of the three logarithms that a first rung of a candidate should show."""
        means = [one.mean[index] for one in self.plain]
        return np.array(means), np.array([one.covariance[index, index] + one.noise[index] for one in self.plain])

    def draw(self, among: Sequence[int], generator: np.random.Generator) -> Array:
        """Samples × candidates: utilities, `-inf` where a limit is missed for certain."""
        if not _bounds_a_metric(self.limits):
            return self.utility_means[among] + _normal(self.utility_covariance(among), generator)
        rows = np.ix_(among, among)
        metrics = [one.mean[among] + _normal(one.covariance[rows], generator) for one in self.wide]
        utilities = sum(weight * draws for weight, draws in zip(self.weights, metrics, strict=True))
        may_keep = _may_keep_limits(metrics, self.batch_sizes[among], self.gpus[among], self.limits)
        return np.where(may_keep, utilities, -np.inf)


class MetricModels:
    """A model of the axes for each metric; remembers the scales that it found last."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        profile: WorkloadProfile,
        forecasts: Mapping[str, Figures],
        numbers: Sequence[NumberAxis] = (),
    ) -> None:
        known = [forecasts.get(candidate.candidate_id) for candidate in candidates]
        logs = None if None in known else np.array([goodness(one) for one in known if one is not None])
        self._models = [
            AxisModel(candidates, prior, None if logs is None else logs[:, metric], numbers)
            for metric, prior in enumerate(PRIORS)
        ]
        self._starts: list[Array | None] = [None] * len(PRIORS)
        self._weights = goodness_weights(profile)
        self._engine_of = engine_codes([candidate.engine for candidate in candidates])
        self._batch_sizes = np.array([float(candidate.batch_size) for candidate in candidates])
        self._gpus = np.array([float(candidate.parallelism) for candidate in candidates])
        self._limits = profile.limits

    @property
    def shared(self) -> Sequence[Array]:
        """Per axis, which candidates have the same value (see `surrogate.shared_values`)."""
        return self._models[0].shared

    def believe(self, seen: Sequence[Measured], surprises: Sequence[Array]) -> MetricPosterior:
        """What follows from `seen` (at least one); `surprises` are as in `widening`."""
        at = np.array([one.index for one in seen])
        logs = _full_length_logs(seen, self._engine_of[at])
        is_first = np.array([one.rung == 0 for one in seen])
        is_disturbed = np.array([one.is_disturbed for one in seen], dtype=float)
        plain = tuple(
            model.fit(
                Observations(
                    at=at,
                    values=logs[:, metric],
                    is_first_rung=is_first,
                    known_noise=is_disturbed * DISTURBED_SD[metric] ** 2,
                ),
                self._starts[metric],
            )
            for metric, model in enumerate(self._models)
        )
        self._starts = [one.scales for one in plain]
        return MetricPosterior(
            plain=plain,
            wide=tuple(one.widened(factor) for one, factor in zip(plain, widening(surprises), strict=True)),
            weights=self._weights,
            batch_sizes=self._batch_sizes,
            gpus=self._gpus,
            limits=self._limits,
        )


def goodness(metrics: Figures) -> Array:
    """ln(1/TTFT), ln(tok/s), ln(1/peak); 0 for what is not known."""
    return np.array(
        [
            -math.log(metrics.ttft_ms or 1.0),
            math.log(metrics.decode_tok_s or 1.0),
            -math.log(metrics.peak_mib or 1.0),
        ]
    )


def goodness_weights(profile: WorkloadProfile) -> Array:
    """What `goodness` is multiplied by to become a utility: more is better in all of it."""
    return np.abs(utility_weights(profile))


def widening(surprises: Sequence[Array]) -> Array:
    """Per metric, the factor on predicted variances.

    `surprises` are squared standardised residuals of what was launched against what had been predicted then. Their mean
    is 1 where the model is right, within √(2/n); beyond that the model is surer than it is right by what is left.
    """
    if not surprises:
        return np.full(len(PRIORS), MODESTY)
    excess = np.mean(surprises, axis=0) / (1 + math.sqrt(2 / len(surprises)))
    return np.asarray(MODESTY * np.maximum(1.0, excess))


def _full_length_logs(seen: Sequence[Measured], engines: npt.NDArray[np.int64]) -> Array:
    """Measurements as k × 3 logarithms; those of rung 0 moved by what lies between rung 0 and full length: of the same
    engine, where enough candidates of it showed that, else of all."""
    logs = np.array([goodness(one.metrics) for one in seen])
    moves = {
        place: goodness(one.metrics) - goodness(one.first)
        for place, one in enumerate(seen)
        if one.rung and one.first is not None and not one.is_disturbed
    }
    if not moves:
        return logs
    is_first = np.array([one.rung == 0 for one in seen])
    for engine in np.unique(engines):
        own = [move for place, move in moves.items() if engines[place] == engine]
        logs[is_first & (engines == engine)] += np.median(
            own if len(own) >= _FEWEST_MOVES else [*moves.values()], axis=0
        )
    return logs


def _normal(covariance: Array, generator: np.random.Generator) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    normal = generator.standard_normal((SAMPLES, len(covariance)))
    return np.asarray((normal * np.sqrt(values.clip(0))) @ vectors.T)


def _bounds_a_metric(limits: Limits) -> bool:
    return any(
        value is not None
        for value in (limits.max_ttft_ms, limits.max_itl_ms, limits.min_decode_tok_s, limits.max_peak_mib)
    )


def _may_keep_limits(
    metrics: Sequence[Array], batch_sizes: Array, gpus: Array, limits: Limits
) -> npt.NDArray[np.bool_]:
    """Whether means over cells, given as goodness, keep the limits, which hold in every cell: true of some that do not,
    false of none that does. A mean ITL is taken for its 95th percentile, and memory for evenly spread over the GPUs."""
    keeps = np.ones_like(metrics[0], dtype=bool)
    if limits.max_ttft_ms is not None:
        keeps &= metrics[0] >= -math.log(limits.max_ttft_ms)
    if limits.min_decode_tok_s is not None:
        keeps &= metrics[1] >= math.log(limits.min_decode_tok_s)
    if limits.max_itl_ms is not None:
        keeps &= metrics[1] >= np.log(1000 * batch_sizes / limits.max_itl_ms)
    if limits.max_peak_mib is not None:
        keeps &= metrics[2] >= -np.log(gpus * limits.max_peak_mib)
    return keeps
