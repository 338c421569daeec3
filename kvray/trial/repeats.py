"""How often a disturbed run may be repeated: a few times per cell, within a share of what the trial costs anyway."""

from __future__ import annotations

from collections import Counter

from kvray.workload import Cell

MAX_EXTRA_RUNS = 2
"""For one cell at one rung."""
MAX_EXTRA_SHARE = 0.25
"""Largest share of the trial's busy seconds so far that all extra runs may take."""


class ExtraRuns:
    """Keeps account of the runs of a trial that repeat a disturbed one."""

    def __init__(self) -> None:
        self._spent_s = 0.0
        self._runs: Counter[tuple[Cell, int]] = Counter()

    def may_repeat(self, cell: Cell, rung: int, *, run_s: float, busy_s: float) -> bool:
        """Whether one more run, which should take `run_s`, is within the limits of a trial busy for `busy_s` so far."""
        has_time = self._spent_s + run_s <= MAX_EXTRA_SHARE * (busy_s + run_s)
        return has_time and self._runs[cell, rung] < MAX_EXTRA_RUNS

    def note(self, cell: Cell, rung: int, run_s: float) -> None:
        """An extra run took `run_s`."""
        self._spent_s += run_s
        self._runs[cell, rung] += 1
