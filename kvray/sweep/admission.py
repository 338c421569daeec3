"""Which trial starts next on the GPUs that are free, when trials hold one GPU or several. Imports no Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from kvray.sweep.capacity import Room
from kvray.sweep.trial_task import TrialTask

_LONGEST_LINE = 2
"""A trial that waits, and one behind it. Further ones stay in their queue, which may choose better by then."""


class TrialSource(Protocol):
    """What trials are taken from: a queue, or the batch of several."""

    @property
    def is_over(self) -> bool:
        """Whether nothing runs and nothing is to be launched. Asked after `next_trial` has returned `None`."""

    def next_trial(self) -> TrialTask | None:
        """The next trial; `None` when there is none before a running one has ended, or none at all."""


class Admission:
    """Takes trials from a source as soon as there is room for them.

    A trial that needs more GPUs than are free waits for them at the head of a line. Others overtake it only on GPUs
    that it does not need: all those that overtake it hold no more together than what it leaves of the whole. So it
    starts at the latest when the trials have ended that ran when its turn came, and no GPU is idle but those that are
    gathered for it.
    """

    def __init__(self, source: TrialSource, *, room: Callable[[], Room]) -> None:
        self._source = source
        self._room = room
        self._out: list[TrialTask] = []
        self._line: deque[TrialTask] = deque()
        self._overtakers: list[TrialTask] = []
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether no trial is out and the source had no further one when it was last asked."""
        return self._is_over and self.is_idle

    @property
    def is_idle(self) -> bool:
        """Whether no trial is out."""
        return not self._out

    @property
    def needed_gpus(self) -> int:
        """GPUs of the largest trial that is out or waits."""
        return max((task.gpus for task in (*self._out, *self._line)), default=0)

    def next_trial(self) -> TrialTask | None:
        """The next trial that there is room for; it counts as out until `ended`."""
        room = self._room()
        if len(self._out) >= room.slots:
            return None
        task = self._next(room.gpus)
        if task is not None:
            self._out.append(task)
        return task

    def ended(self, task: TrialTask) -> None:
        """A trial holds its GPUs no more."""
        for trials in (self._out, self._overtakers):
            trials[:] = [one for one in trials if one is not task]

    def _next(self, gpus: int) -> TrialTask | None:
        free = gpus - _held(self._out)
        if gpus and free < 1:
            return None
        if not self._line:
            task = self._asked()
            if task is None or task.gpus <= free:
                return task
            self._line.append(task)
        elif self._line[0].gpus <= free:
            self._overtakers.clear()
            return self._line.popleft()
        return self._overtaker(min(free, gpus - self._line[0].gpus - _held(self._overtakers)))

    def _overtaker(self, spare: int) -> TrialTask | None:
        """A trial that the head of the line does not have to wait for."""
        if spare < 1:
            return None
        if len(self._line) < _LONGEST_LINE and (task := self._asked()) is not None:
            self._line.append(task)
        if len(self._line) < _LONGEST_LINE or self._line[-1].gpus > spare:
            return None
        self._overtakers.append(self._line[-1])
        return self._line.pop()

    def _asked(self) -> TrialTask | None:
        task = self._source.next_trial()
        self._is_over = task is None and self._source.is_over
        return task


def _held(tasks: list[TrialTask]) -> int:
    return sum(task.gpus for task in tasks)
