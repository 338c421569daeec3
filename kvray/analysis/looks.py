"""After how many rounds two sides are compared, and when enough is known.

`kvray check` and `benchmarks/gate.py` use the same rule, because looking again and again is part of the procedure: its
shares of wrong verdicts are those that the benchmark shows.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvray.analysis.comparison import Verdict

LEAST_ROUNDS = 3
MOST_ROUNDS = 24


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """Look after every round from `least_rounds` on; end with the first verdict, or after `most_rounds`."""

    least_rounds: int = LEAST_ROUNDS
    most_rounds: int = MOST_ROUNDS

    def is_over(self, verdict: Verdict, rounds: int) -> bool:
        """Whether no further round is measured. Args: rounds: that were measured."""
        if rounds < self.least_rounds:
            return False
        return verdict is not Verdict.INCONCLUSIVE or rounds >= self.most_rounds
