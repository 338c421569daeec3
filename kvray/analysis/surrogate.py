"""A Gaussian process over the axes of a space: what a few measured candidates tell of all others.

Each metric has a model of its own (ln 1/TTFT, ln tok/s, ln 1/peak). Its true values are f + g, where f is the forecast
and g is normal around a common level with the covariance that `axis_kernel` writes down. A measurement adds noise
between processes, and each engine has a noise of its own. How large each effect and each noise is, and how far a
number's effect reaches, is fitted to the measurements by marginal likelihood under weak priors.

Source: Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", sections 2.2 and 5.4.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize

from kvray.analysis.axis_kernel import CONSTANT_VARIANCE, AxisKernel, stacked
from kvray.analysis.axis_values import Array, NumberAxis, axis_points
from kvray.analysis.engine_noise import ENGINE_SD, engine_codes
from kvray.candidate import Candidate

Indices = npt.NDArray[np.int64]
_JITTER = 1e-9
_MAX_ITERATIONS = 30


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What is believed of one metric's scales before anything is measured: medians, as differences of logarithms.

    Attributes:
        main, pair, residual: spread of the effects of one axis, of all pairs together, and of a candidate by itself.
        slope: spread of the factor on the forecast, around 1: it is believed until the measurements say otherwise.
        noise: between processes, and of the few runs within one.
        first_rung: further noise of a trial that has only completed rung 0, whose cells are others.
    """

    main: float
    pair: float
    residual: float
    noise: float
    first_rung: float
    slope: float = 0.7


PRIORS: tuple[Prior, Prior, Prior] = (
    Prior(main=0.15, pair=0.12, residual=0.06, noise=0.05, first_rung=0.03),
    Prior(main=0.06, pair=0.05, residual=0.03, noise=0.02, first_rung=0.03),
    Prior(main=0.06, pair=0.05, residual=0.015, noise=0.006, first_rung=0.02),
)
"""For TTFT, throughput and peak memory: what the fit finds in recorded exhaustive sweeps of SmolLM2-135M and
Gemma-3-270M (`benchmarks/recorded/`), rounded. Noise as measured between fresh processes on a shared 2-core CPU: 6 %
for TTFT, 1.5 % for tok/s (FACTS). The fit moves all of them to what this sweep shows."""
_SPREAD = {"effect": 1.0, "slope": 0.7, "noise": 0.5, "length": 0.7}
"""Standard deviation of a scale's logarithm around its prior median."""
_LENGTH = 0.5
"""Prior median of the length over which a number's effect changes, in ranges of its axis."""
_LEANING = 1.0
"""By how much the second start of a fit leans, as a logarithm: from a number's own effects to its smooth ones. The cost
has a minimum for each, and a fit that began with few measurements stays in the one that it fell into."""


@dataclass(frozen=True, kw_only=True)
class Observations:
    """Measurements of one metric.

    Attributes:
        at: index of the candidate that each belongs to.
        values: logarithms, larger is better.
        is_first_rung: whether only rung 0 stands behind it.
        known_noise: variance of each that comes on top of the noise that is fitted.
    """

    at: Indices
    values: Array
    is_first_rung: npt.NDArray[np.bool_]
    known_noise: Array


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """What is known of one metric of every candidate: n means, and their n × n covariance (noise not included).

    Attributes:
        noise: n variances of what a first rung would measure around the truth.
        scales: logarithms of the fitted scales, a start for the next fit.
    """

    mean: Array
    covariance: Array
    noise: Array
    scales: Array

    def widened(self, factor: float) -> Posterior:
        """The same, `factor` times as uncertain of the truth."""
        return replace(self, covariance=factor * self.covariance)


class AxisModel:
    """The structure of one space: which candidates share which values, and which have numbers close to each other.

    Args:
        candidates: all of the space, n of them.
        forecast: n predicted values of the metric as logarithms (larger is better), or `None`.
        numbers: the axes whose values have an order.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        prior: Prior,
        forecast: Array | None = None,
        numbers: Sequence[NumberAxis] = (),
    ) -> None:
        size = len(candidates)
        self.shared = shared_values(candidates)
        self._engine_of = engine_codes([candidate.engine for candidate in candidates])
        distances = [axis.distances for axis in numbers]
        is_ordered = [any(np.array_equal(equal, one == 0) for one in distances) for equal in self.shared]
        names = [equal for equal, ordered in zip(self.shared, is_ordered, strict=True) if not ordered]
        fixed = [*self.shared, _pairs(self.shared), np.eye(size)]
        medians = [*[prior.main] * len(self.shared), prior.pair, prior.residual]
        spreads = [_SPREAD["effect"]] * len(medians)
        self._expected = np.zeros(size)
        if forecast is not None and np.ptp(forecast) > 0:
            self._expected = centred = forecast - forecast.mean()
            fixed.append(np.outer(centred, centred))
            medians.append(prior.slope)
            spreads.append(_SPREAD["slope"])
        self._kernel = AxisKernel(
            fixed=stacked(fixed, size),
            named=stacked(names, size).sum(axis=0),
            names=len(names),
            distances=stacked(distances, size),
        )
        count = len(distances)
        medians += [prior.main] * count + [prior.pair] * self._kernel.has_pairs
        spreads += [_SPREAD["effect"]] * (count + self._kernel.has_pairs)
        engines = int(self._engine_of.max()) + 1
        # Each engine's noise over that which the engines have in common; a single engine's is no other than that.
        self._factors = engines if engines > 1 else 0
        factors, noises = [1.0] * self._factors, [prior.noise, prior.first_rung]
        self._medians = np.log([*medians, *[_LENGTH] * count, *factors, *noises])
        self._spreads = np.array(
            [*spreads, *[_SPREAD["length"]] * count, *[ENGINE_SD] * self._factors, *[_SPREAD["noise"]] * 2]
        )
        self._smooth_start = self._medians.copy()
        self._smooth_start[: len(self.shared)][is_ordered] -= _LEANING
        self._smooth_start[len(fixed) : len(fixed) + count] += _LEANING

    def fit(self, seen: Observations, start: Array | None = None) -> Posterior:
        """Fit the scales to `seen` and predict every candidate. At least one observation is needed."""
        beyond = seen.values - self._expected[seen.at]
        level = float(np.mean(beyond))
        values = beyond - level
        inner = self._kernel.among(seen.at)
        arguments = (inner, values, seen.is_first_rung.astype(float), seen.known_noise, self._engine_of[seen.at])
        starts = [self._medians if start is None else start]
        if len(inner.distances):
            starts.append(self._smooth_start)
        fits = sorted((self._fitted(one, arguments) for one in starts), key=lambda one: float(one.fun))
        chances = np.exp([float(fits[0].fun - one.fun) for one in fits])
        return _mixed([self._predict(one.x, inner, values, level, seen) for one in fits], chances / chances.sum())

    def _fitted(self, start: Array, arguments: tuple[Any, ...]) -> Any:
        """scipy's result of minimizing the cost from `start`."""
        return minimize(
            self._cost,
            start,
            args=arguments,
            jac=True,
            method="L-BFGS-B",
            bounds=[(median - 4 * spread, median + 4 * spread) for median, spread in self._prior_terms()],
            options={"maxiter": _MAX_ITERATIONS},
        )

    def _prior_terms(self) -> list[tuple[float, float]]:
        return list(zip(self._medians.tolist(), self._spreads.tolist(), strict=True))

    def _split(self, scales: Array) -> tuple[Array, Array, Array, Array]:
        """Variances of the kernel's terms, lengths, each engine's factor on the variance between processes, and
        variances of the noise (between processes, and of a first rung)."""
        terms, factors = self._kernel.terms, len(scales) - 2 - self._factors
        by_engine = np.exp(2 * scales[factors:-2]) if self._factors else np.ones(1)
        return np.exp(2 * scales[:terms]), np.exp(scales[terms:factors]), by_engine, np.exp(2 * scales[-2:])

    def _cost(
        self, scales: Array, inner: AxisKernel, values: Array, is_first: Array, known_noise: Array, engines: Indices
    ) -> tuple[float, Array]:
        """Negative log of marginal likelihood times prior, and its gradient in `scales` (logarithms).

        Source: Rasmussen and Williams 2006, equations 2.30 and 5.9.
        """
        variances, lengths, by_engine, noise = self._split(scales)
        factors = by_engine[engines]
        likenesses = inner.likenesses(lengths)
        covariance = np.tensordot(variances, likenesses.terms, axes=1) + CONSTANT_VARIANCE
        covariance[np.diag_indices_from(covariance)] += noise[0] * factors + noise[1] * is_first + known_noise + _JITTER
        lower = cholesky(covariance, lower=True, check_finite=False)
        inverse = cho_solve((lower, True), np.eye(len(values)), check_finite=False)
        weights = inverse @ values
        excess = inverse - np.outer(weights, weights)
        diagonal = np.diagonal(excess)
        slopes = np.concatenate(
            [
                np.tensordot(likenesses.terms, excess, axes=([1, 2], [0, 1])) * variances,
                likenesses.length_slopes(variances, excess) / 2,
                np.bincount(engines, diagonal * factors, self._factors)[: self._factors] * noise[0],
                np.array([(diagonal * factors).sum(), diagonal @ is_first]) * noise,
            ]
        )
        distance = (scales - self._medians) / self._spreads
        cost = 0.5 * values @ weights + np.log(np.diagonal(lower)).sum() + 0.5 * distance @ distance
        return float(cost), slopes + distance / self._spreads

    def _predict(self, scales: Array, inner: AxisKernel, values: Array, level: float, seen: Observations) -> Posterior:
        """Source: Rasmussen and Williams 2006, equations 2.25 and 2.26."""
        variances, lengths, by_engine, (process, first_rung) = self._split(scales)
        between = process * by_engine[self._engine_of]
        everything = np.tensordot(variances, self._kernel.likenesses(lengths).terms, axes=1) + CONSTANT_VARIANCE
        noise = between[seen.at] + first_rung * seen.is_first_rung + seen.known_noise + _JITTER
        covariance = (
            np.tensordot(variances, inner.likenesses(lengths).terms, axes=1) + CONSTANT_VARIANCE + np.diag(noise)
        )
        lower = cholesky(covariance, lower=True, check_finite=False)
        inverse = cho_solve((lower, True), np.eye(len(values)), check_finite=False)
        across = everything[:, seen.at]
        return Posterior(
            mean=level + self._expected + across @ (inverse @ values),
            covariance=everything - across @ inverse @ across.T,
            noise=between + first_rung,
            scales=scales,
        )


def _mixed(parts: Sequence[Posterior], chances: Array) -> Posterior:
    """Mean and covariance of a mixture; scales are those of the first part."""
    if len(parts) == 1:
        return parts[0]
    means = np.array([one.mean for one in parts])
    mean = chances @ means
    covariance = sum(
        chance * (one.covariance + np.outer(one.mean - mean, one.mean - mean))
        for chance, one in zip(chances, parts, strict=True)
    )
    return replace(parts[0], mean=mean, covariance=np.asarray(covariance))


def shared_values(candidates: Sequence[Candidate]) -> list[Array]:
    """Per axis on which `candidates` differ, an n × n matrix of ones where two have the same value."""
    matrices: list[Array] = []
    for values in zip(*axis_points(candidates), strict=True):
        codes = np.unique(values, return_inverse=True)[1]
        equal = (codes[:, None] == codes).astype(float)
        if not equal.all() and not any(np.array_equal(equal, other) for other in matrices):
            matrices.append(equal)
    return matrices


def _pairs(equal: Sequence[Array]) -> Array:
    """Mean over all pairs of axes of where two candidates share both values."""
    products = [one * other for one, other in itertools.combinations(equal, 2)]
    return np.mean(products, axis=0) if products else np.zeros_like(equal[0]) if equal else np.zeros((1, 1))
