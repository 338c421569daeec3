"""Several sweeps over one pool of slots: whose trial is launched next, and who is told of it. Imports no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvray.record import TrialResult
from kvray.sweep.observer import SweepObserver
from kvray.sweep.trial_queue import TrialQueue
from kvray.sweep.trial_task import TrialTask


@dataclass(frozen=True, kw_only=True)
class QueuedSweep:
    """A sweep that can run. It keeps its own queue, and whoever hears of its trials keeps its records.

    Attributes:
        size: sweeps are launched from in this order, the largest first: what is left for the end is then short.
    """

    queue: TrialQueue
    observer: SweepObserver
    size: float = 0.0


class SweepBatch:
    """The trials of several sweeps, one after the other as slots are free.

    A slot gets the next trial of the largest sweep that has one. The others fill the slots that it leaves while it
    waits for a trial that runs. A trial belongs to the sweep of its `run_id`.
    """

    def __init__(self, sweeps: Sequence[QueuedSweep]) -> None:
        self._going_on = sorted(sweeps, key=lambda sweep: -sweep.size)
        self._sweeps: dict[str, QueuedSweep] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles what holds it into a state that nobody reads, and consoles do not pickle."""
        return {}

    @property
    def is_over(self) -> bool:
        """Whether nothing runs and nothing is to be launched. Ask after `next_trial` has returned `None`."""
        return all(sweep.queue.is_over for sweep in self._going_on)

    def next_trial(self) -> TrialTask | None:
        """The next trial; `None` when there is none before a running one has ended, or none at all."""
        for sweep in tuple(self._going_on):
            task = sweep.queue.next_trial()
            if task is not None:
                self._sweeps.setdefault(task.spec.run_id, sweep)
                return task
            if sweep.queue.is_over:
                self._going_on.remove(sweep)
        return None

    def sweep_of(self, run_id: str) -> QueuedSweep:
        """The sweep that has launched trials of `run_id`."""
        return self._sweeps[run_id]

    def trial_finished(self, result: TrialResult) -> None:
        """A trial ended in whatever way."""
        self.sweep_of(result.record.run_id).queue.trial_finished(result)

    def trial_lost(self, task: TrialTask) -> None:
        """A trial's slot died."""
        self.sweep_of(task.spec.run_id).queue.trial_lost(task)
