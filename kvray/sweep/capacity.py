"""Counts, while a sweep runs, how many trials the cluster's current nodes have room for, and ends the sweep when none
has any for too long. How machines are divided at the start is in `slot_plan`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from kvray.errors import SweepError

NODELESS_S = 600.0
"""How long a sweep waits for a node to join when none is left that has room for a trial."""
_LOOK_S = 1.0
_logger = logging.getLogger("kvray.sweep")


@dataclass(frozen=True, kw_only=True)
class NodeRoom:
    """What one machine of a cluster has room for.

    Attributes:
        node_id: Ray's.
        slots: trials at the same time.
        gpus: GPUs that these trials share.
    """

    node_id: str
    slots: int
    gpus: int


@dataclass(frozen=True, kw_only=True)
class Room:
    """What machines have room for.

    Attributes:
        slots: trials at the same time.
        gpus: GPUs that these trials share; 0 where they run on a CPU.
        largest: GPUs of the machine that has the most: a trial never spans machines.
        nodes: each machine that has GPUs, where there is a cluster.
    """

    slots: int
    gpus: int = 0
    largest: int = 0
    nodes: tuple[NodeRoom, ...] = ()


class Capacity:
    """Called by the searcher, all the time: what there is room for. Asks Ray once a second.

    Args:
        planned: the room when the sweep started.
        room: what the living machines have room for now.
        follows_nodes: whether machines that join or leave change the answer.
        gpu_type: Ray's accelerator type of the machines that count, where that is one of several.
    """

    def __init__(
        self,
        planned: Room,
        *,
        room: Callable[[], Room],
        follows_nodes: bool,
        gpu_type: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._planned = planned
        self._room = room
        self._follows_nodes = follows_nodes
        self._node = "node" if gpu_type is None else f"node with GPUs of type {gpu_type}"
        self._clock = clock
        self._known = planned
        self._looked_s = -math.inf
        self._none_since_s: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles the searcher into a state that nobody reads, and a session with Ray does not pickle."""
        return {}

    def __call__(self) -> Room:
        """What all trials together may take."""
        self._look()
        return self._known if self._follows_nodes else replace(self._planned, nodes=self._known.nodes)

    def check(self, needed_gpus: int = 0) -> None:
        """Ask at every step: without a node Tune waits for ever.

        Args:
            needed_gpus: those of the largest trial that is to run.

        Raises:
            SweepError: for `NODELESS_S` none has had room.
        """
        self._look()
        if self._known.slots and self._known.largest >= needed_gpus:
            self._none_since_s = None
        elif self._none_since_s is None:
            self._none_since_s = self._clock()
            what = f"a trial of {needed_gpus} GPUs" if needed_gpus > 1 else "a trial"
            _logger.warning(
                "No %s is left that has room for %s; waiting %g minutes for one.", self._node, what, NODELESS_S / 60
            )
        elif self._clock() - self._none_since_s > NODELESS_S:
            raise SweepError(f"No {self._node} has had room for a trial for {NODELESS_S / 60:g} minutes.")

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked_s >= _LOOK_S:
            self._looked_s, self._known = now, self._room()
