"""Where a running trial is: a small file that its slot writes and a view in another process on the machine reads."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from kvray.record import Phase
from kvray.trial.events import Event, PhaseStarted, RunFinished
from kvray.workload import Cell


@dataclass(frozen=True, kw_only=True)
class Position:
    """The phase a trial is in; `cell` is the one that it works on, if any, and `runs` those it has measured so far."""

    phase: Phase
    cell: Cell | None = None
    runs: int = 0


class PositionBoard:
    """Positions of the trials whose slots see `folder`. A trial elsewhere has none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, trial_id: str, position: Position) -> None:
        """Replace what is known of the trial. A full or vanished disk is no reason to fail."""
        cell = None if position.cell is None else list(position.cell)
        path = self._path(trial_id)
        with contextlib.suppress(OSError):
            new = path.with_suffix(".new")
            new.write_text(json.dumps({"phase": position.phase, "cell": cell, "runs": position.runs}))
            new.replace(path)

    def read(self, trial_id: str) -> Position | None:
        """`None` where nothing is known."""
        try:
            told = json.loads(self._path(trial_id).read_text())
            cell = None if told["cell"] is None else Cell(*told["cell"])
            return Position(phase=Phase(told["phase"]), cell=cell, runs=told["runs"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _path(self, trial_id: str) -> Path:
        return self._folder / f"{trial_id}.position"


class PositionNotes:
    """Follows one trial's events and keeps its position up to date on `board`."""

    def __init__(self, board: PositionBoard, trial_id: str) -> None:
        self._board = board
        self._trial_id = trial_id
        self._position = Position(phase=Phase.START)

    def note(self, event: Event) -> None:
        """Hear of an event. Costs one small file on a local disk."""
        match event:
            case PhaseStarted():
                self._position = Position(phase=event.phase, cell=event.cell, runs=self._position.runs)
            case RunFinished():
                self._position = Position(
                    phase=self._position.phase, cell=self._position.cell, runs=self._position.runs + 1
                )
            case _:
                return
        self._board.write(self._trial_id, self._position)
