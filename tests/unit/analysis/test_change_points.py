"""Step changes are found where there are some, and not where the machine or the hour of the week explains them."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from kvray.analysis.change_points import MOST_PASSED_ON, Array, Series, clean, find_step
from kvray.errors import EngineError

HOUR_S = 3600.0
MONDAY_S = 4 * 24 * HOUR_S
"""Unix time of a Monday, 00:00."""


def series(values: Array, *, anchors: Array | None = None, starts: tuple[int, ...] = ()) -> Series:
    at_s = MONDAY_S + np.arange(len(values), dtype=np.float64) * 6 * HOUR_S
    empty = np.empty((len(values), 0))
    return Series(at_s=at_s, values=values, anchors=empty if anchors is None else anchors, starts=starts)


def noise(count: int, sd: float = 0.02) -> Array:
    return np.random.default_rng(1).normal(0, sd, count)


@pytest.mark.parametrize("sd", [0.015, 0.02, 0.03, 0.04])
def test_a_step_of_six_per_cent_is_found_within_eight_observations(sd: float) -> None:
    values = noise(128, sd)
    values[120:] += 0.06
    found = find_step(clean(series(values)))
    assert found is not None
    assert abs(found.start - 120) <= 3
    assert found.size == pytest.approx(0.06, abs=0.03)


def test_noise_has_no_step() -> None:
    assert find_step(clean(series(noise(120)))) is None


def test_a_short_history_has_no_step() -> None:
    assert find_step(clean(series(np.array([0.0, 0.0, 0.0, 0.3])))) is None


def test_one_observation_far_out_is_no_step_once_it_has_passed() -> None:
    values = noise(60, 0.01)
    values[50] += 0.2
    assert find_step(clean(series(values))) is None


def test_a_change_that_was_accepted_is_the_new_level() -> None:
    values = noise(80)
    values[60:] += 0.1
    assert find_step(clean(series(values))) is not None
    assert find_step(clean(series(values, starts=(60,)))) is None


def test_the_load_of_working_days_is_learnt_and_is_no_step() -> None:
    values = noise(240, 0.01)
    hours = np.arange(240) * 6 % 168
    is_load = (hours < 120) & ((hours % 24 == 6) | (hours % 24 == 12))
    loaded = values + 0.04 * is_load
    cleaned = clean(series(loaded))
    left = cleaned.values[-28:]
    assert np.std(left) < 0.5 * np.std(loaded[-28:])
    assert find_step(cleaned) is None


def test_what_the_anchor_moves_is_taken_out() -> None:
    machine = np.cumsum(np.random.default_rng(2).normal(0, 0.02, 120))
    values = machine + noise(120, 0.005)
    anchors = np.column_stack([machine, machine])
    assert np.std(clean(series(values, anchors=anchors)).values) < 0.5 * np.std(clean(series(values)).values)


@pytest.mark.parametrize(("calm", "slow"), [(3, 1), (5, 2), (8, 6)])
def test_a_slower_machine_explains_no_more_than_it_is_slower(calm: int, slow: int) -> None:
    """The configuration is eight times as slow on a machine that is half as fast, and nobody has seen the anchor move
    before."""
    values, machine = np.random.default_rng(2).normal(size=calm + slow) * 0.01, np.zeros(calm + slow)
    values[calm:] += np.log(8.0)
    machine[calm:] = np.log(2.0)
    explained = clean(series(values, anchors=np.column_stack([machine, machine]))).explained
    assert 0.1 < explained[-1] - explained[0] <= MOST_PASSED_ON * np.log(2.0) + 0.05


def test_an_anchor_that_was_never_measured_explains_nothing() -> None:
    values = noise(60)
    nothing = np.full((60, 2), np.nan)
    assert np.allclose(clean(series(values, anchors=nothing)).values, clean(series(values)).values)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"needs ruptures, which is not installed\. Install it: .*\[watch\]"):
        find_step(clean(series(noise(60))))
