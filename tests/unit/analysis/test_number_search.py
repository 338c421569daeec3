"""What the search makes of axes of numbers: the same measurements, with their order known or not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from search_samples import METRICS, SPACE

from kvray.analysis.aggregate import Metrics
from kvray.analysis.axis_values import NumberAxis, number_axes
from kvray.analysis.bayesian import BayesianSampler
from kvray.analysis.surrogate import PRIORS, AxisModel, Observations
from kvray.candidate import Candidate
from kvray.workload import create_custom_profile

PROFILE = create_custom_profile(
    "sample", context_lengths=(64,), output_lengths=(8,), weight_ttft=0.4, weight_throughput=0.4, weight_memory=0.2
)
THREADS, TILES = (1, 2, 3, 4, 6, 8, 12, 16), (None, 32, 64, 128, 256, 512, 1024)
GRID = list(itertools.product(THREADS, TILES))
NUMBERED = [
    replace(SPACE[0], settings=(("threads", threads), *(() if tile is None else (("tile", tile),))))
    for threads, tile in GRID
]
SMOOTH = [
    -0.3 * math.log2(threads / 6) ** 2
    - (0.2 if tile is None else 0.1 * (math.log2(tile / 256) + math.log2(threads / 6)) ** 2)
    for threads, tile in GRID
]
"""Best with 6 threads and a tile of 256, in the midst of both axes; fewer threads want a larger tile."""


def answers(effects: Sequence[float]) -> Mapping[str, Metrics]:
    plain = METRICS[SPACE[0].candidate_id]
    speeds = [math.exp(effect) for effect in effects]
    return {
        one.candidate_id: replace(plain, ttft_ms=plain.ttft_ms / speed, decode_tok_s=plain.decode_tok_s * speed)
        for one, speed in zip(NUMBERED, speeds, strict=True)
    }


def launches(effects: Sequence[float], numbers: Sequence[NumberAxis]) -> list[Candidate]:
    """Everything that a search launches, one after another."""
    found, metrics = list[Candidate](), answers(effects)
    search = BayesianSampler(NUMBERED, profile=PROFILE, numbers=numbers)
    while (candidate := search.proposal()) is not None:
        key = candidate.candidate_id
        search.launched(key)
        search.measured(key, 0, metrics[key])
        search.measured(key, 1, metrics[key])
        search.ended(key, failed=False, seconds=10.0)
        found.append(candidate)
    return found


@pytest.mark.slow
def test_the_best_of_two_smooth_axes_takes_fewer_launches_than_with_names() -> None:
    best = NUMBERED[int(np.argmax(SMOOTH))]
    ordered, named = launches(SMOOTH, number_axes(NUMBERED)), launches(SMOOTH, ())
    assert best in ordered
    assert best in named
    assert len(ordered) < 0.8 * len(named)


@pytest.mark.slow
def test_an_order_that_means_nothing_costs_next_to_nothing() -> None:
    generator = np.random.default_rng(4)
    threads, tiles = generator.normal(0, 0.3, len(THREADS)), generator.normal(0, 0.3, len(TILES))
    effects = [one + other for one, other in itertools.product(threads.tolist(), tiles.tolist())]
    best = NUMBERED[int(np.argmax(effects))]
    ordered, named = launches(effects, number_axes(NUMBERED)), launches(effects, ())
    assert best in ordered
    assert len(ordered) <= 1.1 * len(named)


def seen(at: Sequence[int], effects: Sequence[float]) -> Observations:
    values = np.array(effects)[list(at)]
    return Observations(
        at=np.array(at), values=values, is_first_rung=np.zeros(len(at), dtype=bool), known_noise=np.zeros(len(at))
    )


def test_a_number_between_two_measured_ones_is_expected_between_them() -> None:
    line = [replace(SPACE[0], batch_size=size) for size in (1, 2, 4, 8, 16)]
    effects = [0.0, 0.2, 0.4, 0.6, 0.8]
    ordered = AxisModel(line, PRIORS[1], numbers=number_axes(line)).fit(seen((0, 1, 3, 4), effects))
    named = AxisModel(line, PRIORS[1]).fit(seen((0, 1, 3, 4), effects))
    assert ordered.mean[2] == pytest.approx(0.4, abs=0.05)
    assert ordered.covariance[2, 2] < 0.3 * named.covariance[2, 2]


def test_one_measurement_is_enough_and_tells_more_of_near_numbers_than_of_far_ones() -> None:
    space = [replace(SPACE[0], prefill_chunk=chunk) for chunk in (64, 128, 256, 512, None)]
    posterior = AxisModel(space, PRIORS[0], numbers=number_axes(space)).fit(seen((0,), [0.0] * 5))
    assert np.isfinite(posterior.mean).all()
    spread = np.diagonal(posterior.covariance)
    assert (np.diff(spread) > 0).all(), "what has no number at all is known least"


def test_the_gradient_of_the_fit_is_that_of_its_cost() -> None:
    model = AxisModel(NUMBERED, PRIORS[0], np.array(SMOOTH), numbers=number_axes(NUMBERED))
    at = np.arange(0, len(NUMBERED), 3, dtype=np.int64)
    inner, values = model._kernel.among(at), np.sin(at)
    is_first, known_noise = (at % 2).astype(float), 0.01 * (at % 3).astype(float)
    scales = model._medians + 0.1 * np.sin(np.arange(len(model._medians)))
    measured = inner, values, is_first, known_noise, model._engine_of[at]
    _, slopes = model._cost(scales, *measured)
    for place in range(len(scales)):
        step = 1e-5 * np.eye(len(scales))[place]
        upper, lower = (model._cost(scales + sign * step, *measured)[0] for sign in (1, -1))
        assert slopes[place] == pytest.approx((upper - lower) / 2e-5, rel=1e-3, abs=1e-4)


def test_covariances_are_positive_with_parameters_of_one_cache_and_missing_numbers() -> None:
    windows = [replace(SPACE[0], cache_params=(("window", size),)) for size in (128, 256, 512, 1024)]
    space = [replace(one, prefill_chunk=chunk) for one in (SPACE[0], *windows) for chunk in (None, 64, 128, 256, 512)]
    numbers = number_axes(space)
    assert len(numbers) == 2
    posterior = AxisModel(space, PRIORS[0], numbers=numbers).fit(seen((0, 5, 10, 15), [0.1 * n for n in range(25)]))
    assert np.linalg.eigvalsh(posterior.covariance).min() > -1e-8


@pytest.mark.slow  # computes for long
def test_a_space_of_400_with_two_axes_of_numbers_is_searched() -> None:
    space = [
        replace(one, batch_size=size, prefill_chunk=chunk)
        for one, size, chunk in itertools.product(SPACE[:5], range(1, 11), (None, *(2**n for n in range(4, 11))))
    ]
    search = BayesianSampler(space, profile=PROFILE, numbers=number_axes(space))
    for candidate in space[::20]:
        key = candidate.candidate_id
        metrics = METRICS[replace(candidate, batch_size=1, prefill_chunk=None).candidate_id]
        search.launched(key)
        search.measured(key, 0, replace(metrics, decode_tok_s=metrics.decode_tok_s * candidate.batch_size))
    proposal = search.proposal()
    assert proposal is not None
    assert proposal.batch_size > 5, "throughput grows with the batch"
