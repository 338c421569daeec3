"""Which observations make up the series of a metric."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from typing import Any

import numpy as np
import pytest
from observations import WATCH_START, plain_observation

from kvray.analysis.comparison import ComparedMetric
from kvray.check.watch.levels import levels_of
from kvray.store.history import Observation, ObservationRole

ROW = plain_observation(ttft_ms_each=(10.0, 10.0), decode_tok_s_each=(50.0,), copy_gb_s=20.0, matmul_gflop_s=80.0)


def rows(*changes: dict[str, Any]) -> list[Observation]:
    return [
        dataclasses.replace(
            ROW, observation_id=str(number), observed_at=WATCH_START + dt.timedelta(hours=6 * number), **change
        )
        for number, change in enumerate(changes)
    ]


def test_confirming_processes_join_the_observation_before_them() -> None:
    confirm = {"role": ObservationRole.CONFIRM, "ttft_ms_each": (10.0, 20.0, 20.0, 20.0)}
    found = levels_of(rows({}, confirm, {}), ComparedMetric.TTFT, ())
    assert found.ids == ("0", "2")
    assert found.series.values[0] == pytest.approx((3 * math.log(10) + 3 * math.log(20)) / 6)


def test_disturbed_observations_are_left_out_unless_most_are() -> None:
    calm, disturbed = {"disturbed": False}, {"disturbed": True}
    assert len(levels_of(rows(calm, calm, disturbed), ComparedMetric.TTFT, ()).ids) == 2
    assert len(levels_of(rows(calm, disturbed, disturbed), ComparedMetric.TTFT, ()).ids) == 3


def test_an_observation_without_a_process_has_no_level_of_a_metric_but_one_of_the_machine() -> None:
    found = rows({}, {"ttft_ms_each": (), "role": ObservationRole.ANCHOR})
    assert levels_of(found, ComparedMetric.TTFT, ()).ids == ("0",)
    assert levels_of(found, None, ()).ids == ("0", "1")


def test_more_is_worse_in_every_series() -> None:
    slower = {"ttft_ms_each": (11.0,), "decode_tok_s_each": (45.0,), "copy_gb_s": 10.0}
    for watched in (ComparedMetric.TTFT, ComparedMetric.DECODE, None):
        values = levels_of(rows({}, slower), watched, ()).series.values
        assert values[1] > values[0]


def test_rates_of_another_anchor_explain_nothing_and_are_no_level() -> None:
    found = levels_of(rows({"anchor": "NumPy 1"}, {}), ComparedMetric.TTFT, ())
    assert np.isnan(found.anchor[0]).all()
    assert np.isfinite(found.anchor[1]).all()
    assert levels_of(rows({"anchor": "NumPy 1"}, {}), None, ()).ids == ("1",)


def test_memory_has_no_anchor() -> None:
    assert levels_of(rows({"peak_mib_each": (900.0,)}), ComparedMetric.MEMORY, ()).series.anchors.shape == (1, 0)


def test_a_level_begins_where_it_began_though_that_observation_is_left_out() -> None:
    found = rows({}, {}, {"disturbed": True}, {}, {})
    assert levels_of(found, ComparedMetric.TTFT, ("2",)).series.starts == (2,)
    assert levels_of(found, ComparedMetric.TTFT, ("0",)).series.starts == ()
