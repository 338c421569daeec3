"""A Gaussian process over the axes of a space: what a few measured candidates tell of all others.

Per metric a model of its own (ln 1/TTFT, ln tok/s, ln 1/peak): a constant, the forecast times a slope around 1, an
effect of every value of every axis, an effect of every pair of values, and a candidate's own residual. Which of these
matter is not known before, so their scales are fitted to the measurements by marginal likelihood under weak priors
(Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", section 5.4).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize

from kvray.candidate import AttentionChoice, Candidate

Array = npt.NDArray[np.float64]

CONSTANT_VARIANCE = 25.0
"""Variance of a logarithm: the overall level is whatever the measurements say."""
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
_SPREAD = {"effect": 1.0, "slope": 0.7, "noise": 0.5}
"""Standard deviation of a scale's logarithm around its prior median."""


@dataclass(frozen=True, kw_only=True)
class Observations:
    """Measurements of one metric.

    Attributes:
        at: index of the candidate that each belongs to.
        values: logarithms, larger is better.
        is_first_rung: whether only rung 0 stands behind it.
        known_noise: variance of each that comes on top of the noise that is fitted.
    """

    at: npt.NDArray[np.int64]
    values: Array
    is_first_rung: npt.NDArray[np.bool_]
    known_noise: Array


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """What is known of one metric of every candidate: n means, and their n × n covariance (noise not included).

    Attributes:
        noise: variance of what a first rung would measure around the truth.
        scales: logarithms of the fitted scales, a start for the next fit.
    """

    mean: Array
    covariance: Array
    noise: float
    scales: Array

    def widened(self, factor: float) -> Posterior:
        """The same, `factor` times as uncertain of the truth."""
        return replace(self, covariance=factor * self.covariance)


class AxisModel:
    """The structure of one space: which candidates share which values.

    Args:
        candidates: all of the space, n of them.
        forecast: n predicted values of the metric as logarithms (larger is better), or `None`.
    """

    def __init__(self, candidates: Sequence[Candidate], prior: Prior, forecast: Array | None = None) -> None:
        equal = shared_values(candidates)
        self.shared = equal
        components = [*equal, _pairs(equal), np.eye(len(candidates))]
        medians = [*[prior.main] * len(equal), prior.pair, prior.residual]
        spreads = [_SPREAD["effect"]] * len(components)
        self._expected = np.zeros(len(candidates))
        if forecast is not None and np.ptp(forecast) > 0:
            self._expected = centred = forecast - forecast.mean()
            components.append(np.outer(centred, centred))
            medians.append(prior.slope)
            spreads.append(_SPREAD["slope"])
        self._components = np.array(components)
        self._medians = np.log([*medians, prior.noise, prior.first_rung])
        self._spreads = np.array([*spreads, _SPREAD["noise"], _SPREAD["noise"]])

    def fit(self, seen: Observations, start: Array | None = None) -> Posterior:
        """Fit the scales to `seen` and predict every candidate. At least one observation is needed."""
        beyond = seen.values - self._expected[seen.at]
        level = float(np.mean(beyond))
        values = beyond - level
        inner = self._components[:, seen.at[:, None], seen.at]
        found = minimize(
            self._cost,
            self._medians if start is None else start,
            args=(inner, values, seen.is_first_rung.astype(float), seen.known_noise),
            jac=True,
            method="L-BFGS-B",
            bounds=[(median - 4 * spread, median + 4 * spread) for median, spread in self._prior_terms()],
            options={"maxiter": _MAX_ITERATIONS},
        )
        return self._predict(found.x, inner, values, level, seen)

    def _prior_terms(self) -> list[tuple[float, float]]:
        return list(zip(self._medians.tolist(), self._spreads.tolist(), strict=True))

    def _cost(
        self, scales: Array, inner: Array, values: Array, is_first: Array, known_noise: Array
    ) -> tuple[float, Array]:
        """Negative log of marginal likelihood times prior, and its gradient in `scales` (logarithms)."""
        variances = np.exp(2 * scales)
        effects = len(inner)
        covariance = np.tensordot(variances[:effects], inner, axes=1) + CONSTANT_VARIANCE
        covariance[np.diag_indices_from(covariance)] += variances[-2] + variances[-1] * is_first + known_noise + _JITTER
        lower = cholesky(covariance, lower=True, check_finite=False)
        inverse = cho_solve((lower, True), np.eye(len(values)), check_finite=False)
        weights = inverse @ values
        excess = inverse - np.outer(weights, weights)
        diagonal = np.diagonal(excess)
        slopes = np.append(np.tensordot(inner, excess, axes=([1, 2], [0, 1])), [diagonal.sum(), diagonal @ is_first])
        distance = (scales - self._medians) / self._spreads
        cost = 0.5 * values @ weights + np.log(np.diagonal(lower)).sum() + 0.5 * distance @ distance
        return float(cost), slopes * variances + distance / self._spreads

    def _predict(self, scales: Array, inner: Array, values: Array, level: float, seen: Observations) -> Posterior:
        variances = np.exp(2 * scales)
        effects = variances[: len(self._components)]
        everything = np.tensordot(effects, self._components, axes=1) + CONSTANT_VARIANCE
        noise = variances[-2] + variances[-1] * seen.is_first_rung + seen.known_noise + _JITTER
        covariance = np.tensordot(effects, inner, axes=1) + CONSTANT_VARIANCE + np.diag(noise)
        lower = cholesky(covariance, lower=True, check_finite=False)
        inverse = cho_solve((lower, True), np.eye(len(values)), check_finite=False)
        across = everything[:, seen.at]
        return Posterior(
            mean=level + self._expected + across @ (inverse @ values),
            covariance=everything - across @ inverse @ across.T,
            noise=float(variances[-2] + variances[-1]),
            scales=scales,
        )


def shared_values(candidates: Sequence[Candidate]) -> list[Array]:
    """Per axis on which `candidates` differ, an n × n matrix of ones where two have the same value."""
    matrices: list[Array] = []
    for values in zip(*(axis_values(candidate) for candidate in candidates), strict=True):
        codes = np.unique(values, return_inverse=True)[1]
        equal = (codes[:, None] == codes).astype(float)
        if not equal.all() and not any(np.array_equal(equal, other) for other in matrices):
            matrices.append(equal)
    return matrices


def axis_values(candidate: Candidate) -> tuple[str, ...]:
    """What a candidate has on every axis. A cache is one by its strategy and another with its settings: variants of one
    strategy are related."""
    return (
        candidate.cache.value,
        str(candidate.cache_choice),
        str(AttentionChoice(candidate.attention, candidate.hub_kernel)),
        candidate.dtype.value,
        candidate.compile.value,
        str(candidate.batch_size),
        str(candidate.parallelism),
        str(candidate.prefill_chunk),
        str(candidate.weights_limit_mib),
    )


def _pairs(equal: Sequence[Array]) -> Array:
    """Mean over all pairs of axes of where two candidates share both values."""
    products = [one * other for one, other in itertools.combinations(equal, 2)]
    return np.mean(products, axis=0) if products else np.zeros_like(equal[0]) if equal else np.zeros((1, 1))
