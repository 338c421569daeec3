"""Medians of runs, geometric means over cells."""

from __future__ import annotations

import math
import random

import pytest
from analysis_samples import make_metrics, make_run
from hypothesis import given
from hypothesis import strategies as st

from kvray.analysis.aggregate import (
    CellMetrics,
    Metrics,
    aggregate,
    aggregate_cell,
    aggregate_cells,
    highest_peak_mib,
    runs_at_rung,
)
from kvray.workload import Cell

positive = st.floats(min_value=1e-3, max_value=1e6)


def cell_metrics(metrics: Metrics, context: int = 128) -> CellMetrics:
    return CellMetrics(cell=Cell(context, 32, 1), metrics=metrics, runs=1)


def test_a_cell_is_the_median_of_its_runs() -> None:
    runs = [
        make_run(ttft_ms=ttft, decode_tok_s=tok_s, peak_mib=peak)
        for ttft, tok_s, peak in ((90.0, 40.0, 900.0), (100.0, 55.0, 1000.0), (500.0, 50.0, 1300.0))
    ]

    metrics = aggregate_cell(runs)

    assert (metrics.ttft_ms, metrics.decode_tok_s, metrics.peak_mib) == (100.0, 50.0, 1000.0)


def test_itl_percentiles_are_those_of_the_pooled_token_gaps() -> None:
    runs = [make_run(itl_ms=tuple(float(gap) for gap in range(start, 101, 2))) for start in (0, 1)]

    metrics = aggregate_cell(runs)

    assert (metrics.itl_p50_ms, metrics.itl_p95_ms, metrics.itl_p99_ms) == (50.0, 95.0, 99.0)


def test_disturbed_runs_are_left_out_of_a_cell() -> None:
    calm, disturbed = make_run(ttft_ms=100.0), make_run(ttft_ms=900.0, itl_ms=(70.0,), disturbed=True)

    (cell,) = aggregate_cells([calm, disturbed])

    assert (cell.metrics.ttft_ms, cell.metrics.itl_p99_ms, cell.runs) == (100.0, 20.0, 1)


def test_a_cell_of_only_disturbed_runs_keeps_them() -> None:
    (cell,) = aggregate_cells([make_run(ttft_ms=value, disturbed=True) for value in (100.0, 300.0)])

    assert (cell.metrics.ttft_ms, cell.runs) == (200.0, 2)


def test_a_run_without_a_peak_leaves_the_cell_without_one() -> None:
    assert aggregate_cell([make_run(peak_mib=5.0), make_run(peak_mib=None)]).peak_mib is None


def test_energy_is_that_of_a_run_over_all_its_tokens() -> None:
    cell = Cell(128, 32, 4)
    runs = [make_run(cell=cell, energy_j=joules) for joules in (128.0, 256.0, 1280.0)]
    assert aggregate_cell(runs).energy_j_per_tok == pytest.approx(2.0)


def test_energy_of_disturbed_runs_is_left_out() -> None:
    runs = [make_run(energy_j=32.0), make_run(energy_j=3200.0, disturbed=True)]
    assert aggregate_cell(runs).energy_j_per_tok == pytest.approx(1.0)


def test_a_run_or_a_cell_without_energy_leaves_none() -> None:
    assert aggregate_cell([make_run(energy_j=32.0), make_run()]).energy_j_per_tok is None
    powered = aggregate_cells([make_run(energy_j=32.0), make_run(cell=Cell(512, 32, 1))])
    assert aggregate(powered).energy_j_per_tok is None


def test_energy_of_a_candidate_is_the_mean_over_its_cells() -> None:
    cells = aggregate_cells([make_run(energy_j=32.0), make_run(cell=Cell(512, 32, 1), energy_j=128.0)])
    assert aggregate(cells).energy_j_per_tok == pytest.approx(2.0)


def test_no_runs_have_no_metrics() -> None:
    with pytest.raises(ValueError, match="without runs"):
        aggregate_cell([])


def test_no_cells_have_no_metrics() -> None:
    with pytest.raises(ValueError, match="without cells"):
        aggregate([])


def test_cells_come_in_order_and_apart() -> None:
    small, large = Cell(128, 32, 1), Cell(512, 32, 1)

    cells = aggregate_cells([make_run(cell=large, ttft_ms=400.0), make_run(cell=small, ttft_ms=100.0)])

    assert [(one.cell, one.metrics.ttft_ms) for one in cells] == [(small, 100.0), (large, 400.0)]


def test_rung_0_and_rung_1_are_judged_by_their_own_runs_and_rung_2_by_all_full_length_ones() -> None:
    runs = [make_run(rung=rung) for rung in (0, 1, 2, 2)]

    assert [[run.rung for run in runs_at_rung(runs, rung)] for rung in (0, 1, 2)] == [[0], [1], [1, 2, 2]]


def test_cells_weigh_the_same_whatever_their_scale() -> None:
    metrics = aggregate([cell_metrics(make_metrics(10.0, 4.0, 100.0)), cell_metrics(make_metrics(1000.0, 9.0, 400.0))])

    assert metrics.ttft_ms == pytest.approx(100.0)
    assert metrics.decode_tok_s == pytest.approx(6.0)
    assert metrics.peak_mib == pytest.approx(200.0)


def test_a_cell_without_a_peak_leaves_the_candidate_without_one() -> None:
    cells = [cell_metrics(make_metrics(peak_mib=None)), cell_metrics(make_metrics())]

    assert aggregate(cells).peak_mib is None
    assert highest_peak_mib(cells) is None


def test_token_gaps_below_the_clocks_resolution_are_allowed() -> None:
    assert aggregate(aggregate_cells([make_run(itl_ms=(0.0, 0.0))])).itl_p50_ms == 0.0


def test_the_highest_peak_is_that_of_the_hungriest_cell() -> None:
    assert highest_peak_mib([cell_metrics(make_metrics(peak_mib=peak)) for peak in (100.0, 900.0, 300.0)]) == 900.0


@given(st.lists(positive, min_size=1, max_size=8), positive)
def test_scaling_every_cell_scales_the_geometric_mean(values: list[float], factor: float) -> None:
    def mean(scale: float) -> float:
        return aggregate([cell_metrics(make_metrics(ttft_ms=value * scale)) for value in values]).ttft_ms

    assert mean(factor) == pytest.approx(mean(1.0) * factor)
    assert min(values) * (1 - 1e-9) <= mean(1.0) <= max(values) * (1 + 1e-9)
    assert math.log(mean(1.0)) == pytest.approx(sum(map(math.log, values)) / len(values), abs=1e-9)


@given(st.lists(st.tuples(positive, positive, st.booleans()), min_size=1, max_size=8), st.randoms())
def test_the_order_of_runs_does_not_matter(values: list[tuple[float, float, bool]], shuffler: random.Random) -> None:
    runs = [
        make_run(ttft_ms=ttft, decode_tok_s=tok_s, itl_ms=(ttft, tok_s), disturbed=disturbed)
        for ttft, tok_s, disturbed in values
    ]
    shuffled = list(runs)
    shuffler.shuffle(shuffled)

    assert aggregate_cells(shuffled) == aggregate_cells(runs)
