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


def test_all_extra_runs_of_a_trial_share_a_quarter_of_its_busy_seconds() -> None:
    extra = ExtraRuns()
    assert extra.may_repeat(SHORT, 0, run_s=25.0, busy_s=100.0)
    assert not extra.may_repeat(SHORT, 0, run_s=25.1, busy_s=100.0)
    extra.note(SHORT, 0, 20.0)
    assert not extra.may_repeat(LONG, 1, run_s=6.0, busy_s=100.0)
    assert extra.may_repeat(LONG, 1, run_s=6.0, busy_s=104.0)
