"""When enough is known of two sides that are measured round by round.

`kvray check` and `benchmarks/gate.py` use the same rule, because looking after every round is part of the procedure:
its shares of wrong verdicts are those that the benchmark shows.
"""

from __future__ import annotations

from kvray.analysis.comparison import Verdict

MOST_ROUNDS = 24


def is_over(verdict: Verdict, rounds: int) -> bool:
    """Whether no further round is measured. The verdict is looked at after every round; the first one that is PASS or
    FAIL ends it.

    Args:
        rounds: that were measured.
    """
    return verdict is not Verdict.INCONCLUSIVE or rounds >= MOST_ROUNDS
