"""Where a running trial is, from its slot to whoever shows it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from kvray.record import Phase, Run
from kvray.trial.events import PhaseStarted, RunFinished
from kvray.trial.position import Position, PositionBoard, PositionNotes
from kvray.workload import Cell

RUN = Run(
    run_id="r",
    trial_id="t",
    candidate_id="c",
    context_tokens=64,
    output_tokens=8,
    batch_size=1,
    rung=0,
    repeat=0,
    ttft_ms=10.0,
    itl_ms=(5.0,) * 7,
    decode_tok_s=200.0,
    peak_mib=100.0,
    started_at=dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
)


def test_a_position_follows_the_events_of_its_trial(tmp_path: Path) -> None:
    board, cell = PositionBoard(tmp_path), Cell(64, 8, 1)
    notes = PositionNotes(board, "t")
    assert board.read("t") is None
    notes.note(PhaseStarted(phase=Phase.LOAD))
    assert board.read("t") == Position(phase=Phase.LOAD)
    notes.note(PhaseStarted(phase=Phase.MEASURE, cell=cell))
    notes.note(RunFinished(run=RUN))
    assert board.read("t") == Position(phase=Phase.MEASURE, cell=cell, runs=1)
    assert board.read("other") is None


def test_a_board_that_cannot_be_written_or_read_stops_nothing(tmp_path: Path) -> None:
    PositionBoard(tmp_path / "gone").write("t", Position(phase=Phase.LOAD))
    (tmp_path / "torn.position").write_text('{"phase": "lo')
    (tmp_path / "odd.position").write_text("[1]")
    assert PositionBoard(tmp_path / "gone").read("t") is None
    assert PositionBoard(tmp_path).read("torn") is None
    assert PositionBoard(tmp_path).read("odd") is None
