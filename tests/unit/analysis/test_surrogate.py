from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from search_samples import ATTENTION_EFFECT, CACHE_EFFECT, DTYPE_EFFECT, POINTS, SPACE

from kvray.analysis.axis_values import Array
from kvray.analysis.surrogate import PRIORS, AxisModel, Observations, shared_values
from kvray.candidate import Candidate, CompileMode

ADDITIVE = np.array([CACHE_EFFECT[c] + ATTENTION_EFFECT[a] + DTYPE_EFFECT[d] for c, a, d in POINTS])
L_SHAPED = [index for index, (c, a, d) in enumerate(POINTS) if (c > 0) + (a > 0) + (d > 0) <= 1]
PRIOR = PRIORS[1]
TWO_ENGINES = [replace(one, engine=("quiet", "noisy")[place % 2]) for place, one in enumerate(SPACE)]


def seen(at: list[int], values: Array, *, first_rung: bool = False) -> Observations:
    return Observations(
        at=np.array(at), values=values[at], is_first_rung=np.full(len(at), first_rung), known_noise=np.zeros(len(at))
    )


def test_effects_of_axes_add_up_to_candidates_never_measured() -> None:
    posterior = AxisModel(SPACE, PRIOR).fit(seen(L_SHAPED, ADDITIVE))
    unseen = [index for index in range(len(POINTS)) if index not in L_SHAPED]
    errors = posterior.mean[unseen] - ADDITIVE[unseen]
    assert np.abs(errors).max() < 0.1
    assert (np.abs(errors) < 3 * np.sqrt(np.diagonal(posterior.covariance)[unseen])).all()


def test_what_was_measured_is_known_better_than_what_was_not() -> None:
    spread = np.sqrt(np.diagonal(AxisModel(SPACE, PRIOR).fit(seen(L_SHAPED, ADDITIVE)).covariance))
    unseen = [index for index in range(len(POINTS)) if index not in L_SHAPED]
    assert spread[L_SHAPED].max() < spread[unseen].min()


def test_a_good_forecast_is_believed_and_a_bad_one_is_not() -> None:
    noise = np.random.default_rng(0).permutation(ADDITIVE)
    few = L_SHAPED[::2]
    unseen = [index for index in range(len(POINTS)) if index not in few]

    def error(forecast: Array | None) -> float:
        posterior = AxisModel(SPACE, PRIOR, forecast).fit(seen(few, ADDITIVE))
        return float(np.abs(posterior.mean - ADDITIVE)[unseen].mean())

    assert error(ADDITIVE) < 0.5 * error(None)
    assert error(noise) < 1.5 * error(None)


def test_the_first_rung_is_trusted_less_than_full_length() -> None:
    short = AxisModel(SPACE, PRIOR).fit(seen(L_SHAPED, ADDITIVE, first_rung=True))
    full = AxisModel(SPACE, PRIOR).fit(seen(L_SHAPED, ADDITIVE))
    assert np.trace(short.covariance) > np.trace(full.covariance)


@pytest.mark.parametrize("space", [SPACE, TWO_ENGINES])
def test_the_gradient_of_the_fit_is_that_of_its_cost(space: list[Candidate]) -> None:
    model = AxisModel(space, PRIOR, forecast=ADDITIVE)
    at = np.array(L_SHAPED)
    values = ADDITIVE[at] - ADDITIVE[at].mean()
    inner = model._kernel.among(at)
    is_first, known_noise = (at % 2).astype(float), 0.01 * (at % 3)
    scales = model._medians + 0.1
    measured = inner, values, is_first, known_noise, model._engine_of[at]
    _, slopes = model._cost(scales, *measured)
    for place in range(len(scales)):
        step = np.zeros(len(scales))
        step[place] = 1e-5
        upper, lower = (model._cost(scales + sign * step, *measured)[0] for sign in (1, -1))
        assert slopes[place] == pytest.approx((upper - lower) / 2e-5, rel=1e-3, abs=1e-4)


def test_one_measurement_is_enough_to_predict_from() -> None:
    posterior = AxisModel(SPACE, PRIOR).fit(seen([0], ADDITIVE))
    assert np.isfinite(posterior.mean).all()
    assert posterior.mean[0] == pytest.approx(ADDITIVE[0], abs=0.05)


def test_axes_on_which_nothing_differs_are_none_and_equal_axes_are_one() -> None:
    assert len(shared_values(SPACE)) == 4, "strategy, settings of the cache, attention, dtype"
    static_is_compiled = [
        Candidate(engine="fake", cache=one.cache, attention=one.attention, dtype=one.dtype, compile=mode)
        for one, mode in zip(SPACE[:2], (CompileMode.OFF, CompileMode.DEFAULT), strict=True)
    ]
    assert len(shared_values(static_is_compiled)) == 1, "dtype and compile say the same"


def test_what_is_known_to_be_noisy_weighs_less() -> None:
    values = ADDITIVE.copy()
    values[L_SHAPED[0]] -= 1.0

    def mean(known_noise: float) -> float:
        measured = seen(L_SHAPED, values)
        measured.known_noise[0] = known_noise
        return float(AxisModel(SPACE, PRIOR).fit(measured).mean[L_SHAPED[0]])

    assert abs(mean(1.0) - ADDITIVE[L_SHAPED[0]]) < 0.3 < abs(mean(0.0) - ADDITIVE[L_SHAPED[0]])


def test_each_engine_has_a_noise_of_its_own() -> None:
    is_noisy = np.arange(len(POINTS)) % 2 == 1
    everything = list(range(len(POINTS))) * 3
    deviations = np.where(is_noisy, 0.1, 0.005)[everything]
    values = ADDITIVE[everything] + deviations * np.random.default_rng(3).standard_normal(len(everything))
    measured = replace(seen(everything, ADDITIVE), values=values)

    def fitted(space: list[Candidate]) -> tuple[Array, Array]:
        posterior = AxisModel(space, PRIOR).fit(measured)
        return np.sqrt(posterior.noise), np.sqrt(np.diagonal(posterior.covariance))

    (apart, spread), (together, _) = fitted(TWO_ENGINES), fitted(SPACE)

    assert np.median(apart[is_noisy]) == pytest.approx(0.1, rel=0.3)
    assert np.ptp(together) == 0
    assert together[0] > 2 * apart[~is_noisy].max()
    assert 5 * spread[~is_noisy].max() < spread[is_noisy].min()


@pytest.mark.parametrize("sd", [0.001, 0.1])
def test_an_engine_measured_once_is_believed_to_be_about_as_noisy_as_the_other(sd: float) -> None:
    known = [place for place in range(len(POINTS)) if place % 2 == 0] * 3
    values = ADDITIVE[known] + sd * np.random.default_rng(3).standard_normal(len(known))
    measured = replace(seen([*known, 1], ADDITIVE), values=np.array([*values, ADDITIVE[1]]))
    posterior = AxisModel(TWO_ENGINES, PRIOR).fit(measured)
    often, once = np.sqrt(posterior.noise[:2] - np.exp(2 * posterior.scales[-1]))
    assert often == pytest.approx(sd, rel=0.3)
    assert min(sd, PRIOR.noise) < once < max(sd, PRIOR.noise), "between the other's and what is believed beforehand"
