"""What is computed for many trials, candidates or points at once is what it is for each of them alone."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import random

import numpy as np
import pytest
from analysis_samples import make_candidate, make_profile, make_result

from kvray import cell_figures
from kvray.analysis import analyse, in_threads, pareto
from kvray.analysis.aggregate import (
    Metrics,
    aggregate,
    aggregate_cells,
    cells_of_trial,
    highest_peak_mib,
    runs_at_rung,
    runs_behind,
)
from kvray.analysis.noise import half_widths_95
from kvray.analysis.pareto import pareto_front
from kvray.cell_figures import TrialBlock, TrialCells
from kvray.record import Run
from kvray.run_columns import RunColumns, joined

NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
GENERATOR = random.Random(7)
PROFILE = make_profile()


def run_of(trial: int, context: int, output: int, rung: int, repeat: int) -> Run:
    return Run(
        run_id="r",
        trial_id=f"t-{trial}",
        candidate_id="c",
        context_tokens=context,
        output_tokens=output,
        batch_size=1 + trial % 2,
        rung=rung,
        repeat=repeat,
        ttft_ms=GENERATOR.uniform(50, 500),
        itl_ms=tuple(GENERATOR.uniform(5, 50) for _ in range((output - 1) * GENERATOR.choice((1, 1, 2)))),
        decode_tok_s=GENERATOR.uniform(10, 90),
        peak_mib=None if trial == 3 and repeat == 1 else GENERATOR.uniform(100, 900),
        energy_j=GENERATOR.uniform(1, 9) if trial % 3 else None,
        disturbed=trial == 4 or (trial % 5 == 1 and repeat == 0),
        started_at=NOON,
    )


TRIALS = [
    [
        run_of(trial, context, output, rung, repeat)
        for rung in (0, 1, 2)
        for context in (512, 8)
        for output in (9, 3)
        for repeat in range(1 if rung < 2 else trial % 4)
    ]
    for trial in range(9)
]
TRIALS.append([run for run in TRIALS[0] if run.rung == 0])  # stopped before its first full-length cell
BLOCK = TrialBlock(
    joined([RunColumns.of(runs) for runs in TRIALS]), np.cumsum([0, *(len(runs) for runs in TRIALS)]).tolist()
)


@pytest.mark.parametrize("trial", range(len(TRIALS)))
def test_the_cells_of_many_trials_are_those_of_each_alone(trial: int) -> None:
    runs = TRIALS[trial]
    expected = aggregate_cells(runs_at_rung(runs, 2))
    together = BLOCK.cells(trial)
    alone = TrialBlock(RunColumns.of(runs), (0, len(runs))).cells(0)
    for found in (together, alone):
        assert cells_of_trial(found, [one.cell for one in expected]) == expected
        assert found.disturbed == {one.cell for one in expected if one.is_disturbed}
    for name in ("log_medians", "log_squares"):
        np.testing.assert_array_equal(rows(together, name), rows(alone, name))


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("trial", range(len(TRIALS)))
def test_cells_that_nobody_made_objects_of_are_aggregated_as_objects_are(trial: int, step: int) -> None:
    wanted = [one.cell for one in aggregate_cells(runs_at_rung(TRIALS[trial], 2))][::step]
    stored, made = (cells_of_trial(BLOCK.cells(trial), wanted) for _ in range(2))
    objects = tuple(made)
    assert len(stored) == len(objects)
    assert runs_behind(stored) == sum(one.runs for one in objects)
    assert highest_peak_mib(stored) == highest_peak_mib(objects)
    if objects:
        assert aggregate(stored) == aggregate(objects)


def test_a_gap_below_the_clocks_resolution_makes_the_mean_of_gaps_nothing() -> None:
    run = dataclasses.replace(TRIALS[0][-1], rung=1, itl_ms=(0.0, 0.0))
    stored = cells_of_trial(TrialBlock(RunColumns.of([run]), (0, 1)).cells(0), [run.cell])
    assert aggregate(stored).itl_p50_ms == 0.0
    assert aggregate(tuple(stored)) == aggregate(stored)


@pytest.mark.parametrize("lengths", [[3, 3, 3], [1, 4, 2], [2, 0, 5]])
def test_pieces_are_taken_whatever_their_lengths(lengths: list[int]) -> None:
    values, starts = np.arange(20.0), np.array([11, 2, 2])
    expected = [
        value for start, length in zip(starts, lengths, strict=True) for value in values[start : start + length]
    ]
    assert cell_figures._taken(values, starts, np.array(lengths)).ravel().tolist() == expected


def test_what_is_computed_in_threads_is_what_is_computed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    results = [make_result(make_candidate(number), PROFILE, ttft_ms=100.0 + number) for number in range(12)]
    alone = analyse(results, PROFILE)
    monkeypatch.setattr(in_threads, "_WORTH_A_THREAD", 0)
    assert analyse(results, PROFILE) == alone


def rows(cells: TrialCells, name: str) -> object:
    return getattr(cells.figures, name)[cells.start : cells.stop]


def test_the_logarithms_of_a_cell_are_those_of_its_calm_runs() -> None:
    cells = BLOCK.cells(2)
    calm = [run for run in runs_at_rung(TRIALS[2], 2) if run.cell == (8, 3, 1) and not run.disturbed]
    logs = np.log([[run.ttft_ms, run.decode_tok_s, run.peak_mib or 1.0] for run in calm])
    (place,) = cells.rows((calm[0].cell,))
    assert cells.figures.runs[place] == len(calm)
    np.testing.assert_allclose(cells.figures.log_medians[place], np.median(logs, axis=0))
    np.testing.assert_allclose(cells.figures.log_squares[place], ((logs - logs.mean(axis=0)) ** 2).sum(axis=0))


def test_half_widths_hold_95_per_cent_of_every_mixture() -> None:
    variances = np.exp(np.random.default_rng(3).normal(-6, 2, (50, 32)))
    variances[0] = 4.0
    variances[1] = 0.0
    for row, width in zip(variances[2:], half_widths_95(variances)[2:], strict=True):
        held = np.mean([math.erf(width / math.sqrt(2 * one)) for one in row])
        assert held == pytest.approx(0.95, abs=1e-4)
    assert half_widths_95(variances)[0] == pytest.approx(1.95996 * 2, rel=1e-4)


@pytest.mark.parametrize("known", ["all peaks", "no peaks", "some peaks"])
def test_a_front_is_what_no_other_point_dominates(known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pareto, "_AT_ONCE", 7)

    def peak() -> float | None:
        return None if known == "no peaks" or (known == "some peaks" and GENERATOR.random() < 0.3) else choice()

    def choice() -> float:
        return float(GENERATOR.randint(1, 6))

    points = [
        Metrics(ttft_ms=choice(), itl_p50_ms=1, itl_p95_ms=1, itl_p99_ms=1, decode_tok_s=choice(), peak_mib=peak())
        for _ in range(60)
    ]
    assert pareto_front(points) == tuple(not any(dominates(other, one) for other in points) for one in points)


def dominates(one: Metrics, other: Metrics) -> bool:
    pairs = [(one.ttft_ms, other.ttft_ms), (other.decode_tok_s, one.decode_tok_s)]
    if one.peak_mib is not None and other.peak_mib is not None:
        pairs.append((one.peak_mib, other.peak_mib))
    return all(ours <= theirs for ours, theirs in pairs) and any(ours < theirs for ours, theirs in pairs)
