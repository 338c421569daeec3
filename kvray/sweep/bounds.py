"""How far a sweep may go."""

from __future__ import annotations

import math
from dataclasses import dataclass

CONFIRM_SHARE = 0.3
"""Share of the budget that is kept for confirming, so that the result is also sure."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The bounds that a user has set.

    Attributes:
        deadline_s: by the queue's clock; after it nothing is launched, and a trial ends with the rung it is in.
        budget_s: seconds from the sweep's start to the deadline.
        max_trials: launches of the search, the baseline's among them.
        confirm_rounds: at most.
    """

    deadline_s: float | None = None
    budget_s: float = 0.0
    max_trials: int | None = None
    confirm_rounds: int = 0

    def left_s(self, now_s: float) -> float:
        """Seconds to the deadline; infinite where there is none."""
        return math.inf if self.deadline_s is None else self.deadline_s - now_s

    @property
    def kept_for_confirming_s(self) -> float:
        """Seconds at the end of the budget in which the search launches nothing."""
        return CONFIRM_SHARE * self.budget_s if self.confirm_rounds else 0.0
