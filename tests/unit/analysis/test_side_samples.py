"""What a side's processes measured, as arrays."""

from __future__ import annotations

import math

import numpy as np
from analysis_samples import SMALL, make_candidate, make_profile, make_result

from kvray.analysis.comparison import ComparedMetric, side_samples
from kvray.record import Role, TrialStatus
from kvray.workload import Cell

PROFILE = make_profile()
LARGE = Cell(512, 32, 1)


def test_the_samples_are_logarithms_of_each_process_and_cell() -> None:
    results = [
        make_result(make_candidate(), PROFILE, ttft_ms=ttft, role=Role.CONFIRM, confirm_round=number)
        for number, ttft in ((1, 100.0), (2, 200.0))
    ]
    samples = side_samples(results, PROFILE)
    assert samples.cells == (SMALL, LARGE)
    assert samples.logs.shape == (2, 2, 3)
    assert np.allclose(samples.logs[:, 0, ComparedMetric.TTFT.column], np.log([100.0, 200.0]))
    assert np.allclose(samples.logs[:, :, ComparedMetric.DECODE.column], math.log(50.0))
    assert samples.rounds.tolist() == [1, 2]
    assert samples.sessions == ("r", "r")
    assert samples.disturbed.tolist() == [False, False]


def test_what_was_not_measured_is_nan() -> None:
    samples = side_samples([make_result(make_candidate(), PROFILE, cells=[SMALL], peak_mib=None)], PROFILE)
    assert np.isnan(samples.logs[0, 1]).all()
    assert np.isnan(samples.logs[0, :, ComparedMetric.MEMORY.column]).all()
    assert math.isfinite(samples.logs[0, 0, ComparedMetric.TTFT.column])


def test_a_measured_zero_is_nan() -> None:
    samples = side_samples([make_result(make_candidate(), PROFILE, peak_mib=0.0)], PROFILE)
    assert np.isnan(samples.logs[0, :, ComparedMetric.MEMORY.column]).all()


def test_a_process_that_measured_nothing_is_left_out() -> None:
    failed = make_result(make_candidate(), PROFILE, cells=(), status=TrialStatus.CRASHED)
    assert side_samples([failed], PROFILE).logs.shape[0] == 0
