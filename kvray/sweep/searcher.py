"""What is launched next, as Tune asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray.tune.search import Searcher

from kvray.sweep.lanes import Lanes
from kvray.sweep.slot import GOES_ON, RESULT, TASK, UTILITY
from kvray.sweep.trial_task import TrialTask


class BatchSearcher(Searcher):
    """Hands out the trials of a batch of sweeps whenever there is room for one, and tells their queues how they ended.

    Args:
        lanes: know which trial there is room for. Tune itself would take one more than there is room for, and its
            queue would choose it before it knew how the others end.
        before_launch: called before a trial begins while no other one runs.
    """

    def __init__(self, lanes: Lanes, *, before_launch: Callable[[], None] | None = None) -> None:
        super().__init__(metric=UTILITY, mode="max")
        self._lanes = lanes
        self._before_launch = before_launch
        self._out: dict[str, TrialTask] = {}
        self._left: dict[str, TrialTask] = {}
        """What is left of each task that is out, from the trial on that runs now."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's config, `None` while a running trial must end first, or `Searcher.FINISHED`."""
        is_idle = self._lanes.is_idle
        task = self._lanes.next_trial()
        if task is None:
            return str(Searcher.FINISHED) if self._lanes.is_over else None
        if self._before_launch is not None and is_idle:
            self._before_launch()
        self._out[trial_id] = self._left[trial_id] = task
        return {TASK: task}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tell the queue of a trial that has ended in a slot that goes on with the next one of its task."""
        if GOES_ON not in result:
            return
        before = self._left[trial_id]
        self._left[trial_id] = before.left_from(result[GOES_ON])
        self._lanes.of(before.spec).batch.trial_followed(result[RESULT], spared=before.after(self._left[trial_id]))
        if self._before_launch is not None and len(self._out) == 1:
            self._before_launch()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the trial's queue."""
        task, left = self._out.pop(trial_id), self._left.pop(trial_id)
        lane = self._lanes.of(task.spec)
        lane.admission.ended(task)
        if error:
            lane.batch.trial_lost(left)
        elif not result or RESULT not in result:
            # It was stopped before it ran: no attempt was made.
            lane.batch.trial_lost(replace(left, attempt=left.attempt - 1))
        else:
            lane.batch.trial_finished(result[RESULT], spared=left.after(None))

    def save(self, checkpoint_path: str) -> None:
        """A sweep resumes from its records, never from Tune's state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was saved."""
