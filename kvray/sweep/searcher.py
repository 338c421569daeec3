"""What is launched next: a queue of trial orders, first in first out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from ray.tune.search import Searcher

from kvray.sweep.slot import ORDER, UTILITY, TrialOrder


class QueueSearcher(Searcher):
    """Hands out `orders` one by one, then says that the search is finished."""

    def __init__(self, orders: Iterable[TrialOrder]) -> None:
        super().__init__(metric=UTILITY, mode="max")
        self._waiting = deque(orders)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial's config, or `Searcher.FINISHED`."""
        del trial_id
        return {ORDER: self._waiting.popleft()} if self._waiting else str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing to learn from."""

    def save(self, checkpoint_path: str) -> None:
        """A sweep resumes from its records, never from Tune's state."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""
