"""How many trials the machines of a Ray have room for while nodes join and leave; what to do when none is left."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from kvray.errors import SweepError

NODELESS_S = 600.0
"""How long a sweep waits for a node to join when none is left that has room for a trial."""
_LOOK_S = 1.0
_logger = logging.getLogger("kvray.sweep")


class Capacity:
    """Called by the searcher, all the time: how many trials may be out. Asks Ray once a second.

    Args:
        planned: trials at the same time when the sweep started.
        room: how many the living machines have room for now.
        follows_nodes: whether machines that join or leave change the answer.
    """

    def __init__(
        self,
        planned: int,
        *,
        room: Callable[[], int],
        follows_nodes: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._planned = planned
        self._room = room
        self._follows_nodes = follows_nodes
        self._clock = clock
        self._known = planned
        self._looked_s = -math.inf
        self._none_since_s: float | None = None

    def __call__(self) -> int:
        """At most so many trials at the same time."""
        self._look()
        return self._known if self._follows_nodes else self._planned

    def check(self) -> None:
        """Ask at every step: without a node Tune waits for ever.

        Raises:
            SweepError: for `NODELESS_S` none has had room.
        """
        self._look()
        if self._none_since_s is not None and self._clock() - self._none_since_s > NODELESS_S:
            raise SweepError(f"No node has had room for a trial for {NODELESS_S / 60:g} minutes.")

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked_s < _LOOK_S:
            return
        self._looked_s, self._known = now, self._room()
        if self._known:
            self._none_since_s = None
        elif self._none_since_s is None:
            self._none_since_s = now
            _logger.warning("No node is left that has room for a trial; waiting %g minutes for one.", NODELESS_S / 60)
