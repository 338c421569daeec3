"""What is launched next, as Tune asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from kvray.sweep.course import Course
from kvray.sweep.slot import ORDER, RESULT, UTILITY
from kvray.sweep.trial_order import TrialOrder


class CourseSearcher(Searcher):
    """Hands out the orders of a `Course` whenever a slot is free, and tells it how they ended.

    Args:
        capacity: how many trials may be out now. Tune itself would take one more than there is room for, and the
            course would choose it before it knew how the others end.
        before_launch: called before a trial is handed out while no other one runs.
    """

    def __init__(
        self, course: Course, *, capacity: Callable[[], int], before_launch: Callable[[], None] | None = None
    ) -> None:
        super().__init__(metric=UTILITY, mode="max")
        self._course = course
        self._capacity = capacity
        self._before_launch = before_launch
        self._out: dict[str, TrialOrder] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's config, `None` while a running trial must end first, or `Searcher.FINISHED`."""
        if len(self._out) >= self._capacity():
            return None
        order = self._course.next_order()
        if order is None:
            return str(Searcher.FINISHED) if self._course.is_over else None
        if self._before_launch is not None and not self._out:
            self._before_launch()
        self._out[trial_id] = order
        return {ORDER: order}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the course."""
        order = self._out.pop(trial_id)
        if error or not result or RESULT not in result:
            self._course.trial_lost(order)
        else:
            self._course.trial_finished(result[RESULT])

    def save(self, checkpoint_path: str) -> None:
        """A sweep resumes from its records, never from Tune's state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was saved."""
