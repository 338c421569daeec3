"""Whose figures rest on disturbed runs alone, and which disturbed trials no longer count."""

from __future__ import annotations

from dataclasses import replace

from analysis_samples import make_candidate, make_profile, make_result

from kvray.analysis.disturbed import disturbed_share, resting_on_disturbed, without_replaced
from kvray.candidate import Candidate
from kvray.record import Role, TrialResult, TrialStatus
from kvray.workload import Cell

PROFILE = make_profile()
ONE, OTHER = make_candidate(1), make_candidate(2)
LONG = Cell(512, 32, 1)


def trial(
    candidate: Candidate = ONE, *, disturbed: bool = False, where: Cell | None = None, **values: object
) -> TrialResult:
    """All its runs are `disturbed`, or those of one cell."""
    result = make_result(candidate, PROFILE, repeats=2, **values)  # type: ignore[arg-type]
    runs = tuple(replace(run, disturbed=disturbed and where in (None, run.cell)) for run in result.runs)
    return TrialResult(record=result.record, runs=runs)


def with_one_calm_run(result: TrialResult) -> TrialResult:
    """One run of every cell was undisturbed after all."""
    return TrialResult(record=result.record, runs=tuple(replace(run, disturbed=run.rung == 1) for run in result.runs))


def test_a_candidate_with_a_cell_of_disturbed_runs_alone_rests_on_them() -> None:
    assert resting_on_disturbed([trial(disturbed=True, where=LONG), trial(OTHER)]) == (ONE.candidate_id,)


def test_one_undisturbed_run_of_a_cell_is_enough_in_whichever_process() -> None:
    assert resting_on_disturbed([with_one_calm_run(trial(disturbed=True))]) == ()
    assert resting_on_disturbed([trial(disturbed=True), trial(role=Role.CONFIRM)]) == ()


def test_what_failed_rests_on_nothing() -> None:
    assert resting_on_disturbed([trial(disturbed=True, status=TrialStatus.OOM)]) == ()


def test_the_short_runs_of_a_first_rung_do_not_matter_where_a_trial_came_further() -> None:
    short = trial()
    first = tuple(replace(run, rung=0, output_tokens=16, disturbed=True) for run in short.runs[:2])
    assert resting_on_disturbed([TrialResult(record=short.record, runs=(*first, *short.runs))]) == ()
    assert resting_on_disturbed([TrialResult(record=short.record, runs=first)]) == (ONE.candidate_id,)


def test_a_disturbed_trial_counts_until_an_undisturbed_one_has_measured_the_same_cells() -> None:
    disturbed, calm, other = trial(disturbed=True), trial(role=Role.CONFIRM), trial(OTHER, disturbed=True)
    short = make_result(ONE, PROFILE, cells=[LONG])
    assert without_replaced([disturbed, other]) == [disturbed, other]
    assert without_replaced([disturbed, short]) == [disturbed, short]
    assert without_replaced([disturbed, calm, other]) == [calm, other]
    assert disturbed_share([disturbed, calm]) == 0.0
    assert disturbed_share([disturbed, calm, other]) == 0.5


def test_disturbed_runs_beside_undisturbed_ones_of_their_cell_are_in_no_figure() -> None:
    assert disturbed_share([with_one_calm_run(trial(disturbed=True)), trial(OTHER)]) == 0.0
    assert disturbed_share([trial(disturbed=True, where=LONG)]) == 0.5
