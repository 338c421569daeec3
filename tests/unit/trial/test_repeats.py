from __future__ import annotations

from kvray.trial.repeats import MAX_EXTRA_RUNS, ExtraRuns
from kvray.workload import Cell

SHORT, LONG = Cell(24, 4, 1), Cell(48, 4, 1)


def test_a_cell_has_its_extra_runs_at_every_rung() -> None:
    extra = ExtraRuns()
    for _ in range(MAX_EXTRA_RUNS):
        assert extra.may_repeat(SHORT, 1, run_s=1.0, busy_s=1000.0)
        extra.note(SHORT, 1, 1.0)
    assert not extra.may_repeat(SHORT, 1, run_s=1.0, busy_s=1000.0)
    assert extra.may_repeat(SHORT, 2, run_s=1.0, busy_s=1000.0)
    assert extra.may_repeat(LONG, 1, run_s=1.0, busy_s=1000.0)


def test_all_extra_runs_of_a_trial_are_a_quarter_of_its_busy_seconds_at_most() -> None:
    extra = ExtraRuns()
    assert extra.may_repeat(SHORT, 0, run_s=20.0, busy_s=60.0)
    assert not extra.may_repeat(SHORT, 0, run_s=20.0, busy_s=59.0)
    extra.note(SHORT, 0, 20.0)
    assert not extra.may_repeat(LONG, 1, run_s=20.0, busy_s=139.0)
    assert extra.may_repeat(LONG, 1, run_s=20.0, busy_s=140.0)
