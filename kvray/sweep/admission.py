"""Which trial starts next, and on which node, when trials hold one GPU or several. Imports no Ray."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from kvray.sweep.capacity import NodeRoom, Room
from kvray.sweep.trial_task import TrialTask

WAITS_S = 120.0
"""How long a trial waits for a node whose GPUs programs outside the sweep hold, before it is placed on another one."""
_AVOIDED_S = 600.0
"""How long such a node comes last."""
_ANYWHERE = ""
"""Stands for all nodes together, where Ray chooses one of them for each trial."""


class TrialSource(Protocol):
    """What trials are taken from: a queue, or the batch of several."""

    @property
    def is_over(self) -> bool:
        """Whether nothing runs and nothing is to be launched. Asked after `next_trial` has returned `None`."""

    def next_trial(self) -> TrialTask | None:
        """The next trial; `None` when there is none before a running one has ended, or none at all."""


@dataclass(eq=False, kw_only=True)
class _Placed:
    """A trial that is out, and the id of its node."""

    task: TrialTask
    node: str


@dataclass(eq=False, kw_only=True)
class _Waiting:
    """A trial for which no node has enough free GPUs.

    Attributes:
        node: id of the node whose GPUs are gathered for it; `None` where every one that is large enough is gathered for
            another trial.
        passed: trials that were placed on that node since.
    """

    task: TrialTask
    node: str | None = None
    passed: list[_Placed] = field(default_factory=list)


class Admission:
    """Takes trials from a source as soon as there is room for them.

    Where trials of several GPUs share unlike nodes with others, each trial is given a node: Ray would fill the nodes as
    it likes, and a trial of all GPUs of a node could wait for ever while single GPUs are idle everywhere. A trial gets
    the node that is left with the fewest free GPUs.

    A trial that fits nowhere waits, and the GPUs of one node are gathered for it. Others may still be placed there as
    long as they hold no more together than it leaves of the node. So it starts at the latest when the trials have ended
    that ran there when its turn came, and no GPU is idle but those that are gathered. Once a trial waits for which no
    node is left to gather, the source is asked for no further one: it may choose better by then.

    Args:
        room: what the machines have room for now.
        most_gpus: GPUs of the largest trial that the source may have.
    """

    def __init__(
        self,
        source: TrialSource,
        *,
        room: Callable[[], Room],
        most_gpus: Callable[[], int] = lambda: 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._room = room
        self._most_gpus = most_gpus
        self._clock = clock
        self._placed_s: dict[int, float] = {}
        """When each trial that is out was placed, by `id` of its task."""
        self._taken_until_s: dict[str, float] = {}
        self._out: list[_Placed] = []
        self._held: Counter[str] = Counter()
        """GPUs that trials hold, by id of their node."""
        self._trials: Counter[str] = Counter()
        """How many there are, by id of their node."""
        self._line: list[_Waiting] = []
        self._nodes: tuple[NodeRoom, ...] = ()
        self._are_nodes_chosen = False
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
        out, line = (one.task.gpus for one in self._out), (one.task.gpus for one in self._line)
        return max((*out, *line), default=0)

    def next_trial(self) -> TrialTask | None:
        """The next trial that there is room for, with its node; it counts as out until `ended`."""
        room = self._room()
        self._are_nodes_chosen |= max(self._most_gpus(), self.needed_gpus) > 1
        self._nodes = room.nodes if room.nodes and self._are_nodes_chosen else (_all_together(room),)
        self._gather()
        if len(self._out) >= room.slots:
            return None
        return self._first_of_the_line() or self._new_one()

    def ended(self, task: TrialTask) -> None:
        """A trial holds its GPUs no more."""
        self._placed_s.pop(id(task), None)
        for one in self._out:
            if one.task is task:
                self._held[one.node] -= task.gpus
                self._trials[one.node] -= 1
        for placed in (self._out, *(one.passed for one in self._line)):
            placed[:] = [one for one in placed if one.task is not task]

    def is_stranded(self, task: TrialTask) -> bool:
        """Whether `task`, which is out and has not begun, had better be placed anew: the node that was chosen for it is
        there no more, or others hold its GPUs and there is a further node.
        """
        if task.node is None:
            return False
        now = self._clock()
        if all(node.node_id != task.node for node in self._nodes):
            return True
        if now - self._placed_s.get(id(task), now) <= WAITS_S:
            return False
        self._taken_until_s[task.node] = now + _AVOIDED_S
        return any(node.gpus >= task.gpus and not self._is_taken(node) for node in self._nodes)

    def _first_of_the_line(self) -> TrialTask | None:
        for waiting in self._line:
            node = self._place_of(waiting.task, waiting)
            if node is not None:
                self._line.remove(waiting)
                task = self._placed(waiting.task, node)
                self._gather()
                return task
        return None

    def _new_one(self) -> TrialTask | None:
        while all(one.node is not None for one in self._line) and self._has_any_room():
            task = self._source.next_trial()
            self._is_over = task is None and self._source.is_over
            if task is None:
                return None
            node = self._place_of(task)
            if node is not None:
                return self._placed(task, node)
            self._line.append(_Waiting(task=task))
            self._gather()
        return None

    def _gather(self) -> None:
        """Choose a node for each trial that waits and has none, the first of the line first."""
        there = {node.node_id for node in self._nodes}
        for waiting in self._line:
            if waiting.node not in there:
                free = self._gathered()
                large = [one for one in self._nodes if one.gpus >= waiting.task.gpus and one.node_id not in free]
                best = max(large, key=lambda one: (not self._is_taken(one), self._free(one)[0]), default=None)
                waiting.node, waiting.passed = (None if best is None else best.node_id), []

    def _gathered(self) -> dict[str, _Waiting]:
        """By id of their node, the trials that GPUs are gathered for."""
        return {one.node: one for one in self._line if one.node is not None}

    def _place_of(self, task: TrialTask, waiting: _Waiting | None = None) -> NodeRoom | None:
        """The node that `task` leaves with the fewest free GPUs; `None` where it fits nowhere."""
        found = [one for one in self._nodes if _fits(task, self._left_for(waiting, one))]
        return min(found, key=lambda one: (self._is_taken(one), self._free(one)[0], one.node_id), default=None)

    def _is_taken(self, node: NodeRoom) -> bool:
        return self._clock() < self._taken_until_s.get(node.node_id, 0.0)

    def _has_any_room(self) -> bool:
        return any(slots >= 1 and (gpus >= 1 or not one.gpus) for one, (gpus, slots) in self._left_of_each())

    def _left_of_each(self) -> Sequence[tuple[NodeRoom, tuple[int, int]]]:
        return [(one, self._left_for(None, one)) for one in self._nodes]

    def _left_for(self, waiting: _Waiting | None, node: NodeRoom) -> tuple[int, int]:
        """GPUs and slots of `node` that are left for `waiting`, or for a trial that does not wait."""
        gpus, slots = self._free(node)
        other = self._gathered().get(node.node_id)
        if other is None or other is waiting:
            return gpus, slots
        held = sum(one.task.gpus for one in other.passed)
        return min(gpus, node.gpus - other.task.gpus - held), min(slots, node.slots - 1 - len(other.passed))

    def _free(self, node: NodeRoom) -> tuple[int, int]:
        """GPUs and slots of `node` that no trial holds. One of which only Ray knows the node may be on any."""
        there = set(self._held) if node.node_id == _ANYWHERE else {node.node_id, _ANYWHERE}
        held, trials = (sum(counted[one] for one in there) for counted in (self._held, self._trials))
        return node.gpus - held, node.slots - trials

    def _placed(self, task: TrialTask, node: NodeRoom) -> TrialTask:
        placed = _Placed(task=replace(task, node=node.node_id or None), node=node.node_id)
        if (other := self._gathered().get(node.node_id)) is not None:
            other.passed.append(placed)
        self._out.append(placed)
        self._placed_s[id(placed.task)] = self._clock()
        self._held[placed.node] += task.gpus
        self._trials[placed.node] += 1
        return placed.task


def _all_together(room: Room) -> NodeRoom:
    return NodeRoom(node_id=_ANYWHERE, slots=room.slots, gpus=room.gpus)


def _fits(task: TrialTask, left: tuple[int, int]) -> bool:
    gpus, slots = left
    return slots >= 1 and gpus >= task.gpus
