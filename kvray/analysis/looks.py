"""When enough is known of two sides that are measured round by round.

`kvray check` and `benchmarks/gate.py` use the same rule, because looking after every round is part of the procedure:
its shares of wrong verdicts are those that the benchmark shows.
"""

from __future__ import annotations

from kvray.analysis.comparison import Verdict

MOST_ROUNDS = 24
ENOUGH_FOR_A_RECORD = 8
"""Rounds after which more of them hardly narrow a comparison with a record: the spread between sessions stays."""


def is_over(verdict: Verdict, rounds: int) -> bool:
    """Whether no further round is measured. The verdict is looked at after every round; the first one that is PASS or
    FAIL ends it.

    Args:
        rounds: that were measured.
    """
    return verdict is not Verdict.INCONCLUSIVE or rounds >= MOST_ROUNDS


def is_hopeless(rounds: int, more_rounds: int | None, *, is_settled: bool) -> bool:
    """Whether an open comparison will hardly be decided by as many rounds as a check measures.

    Args:
        more_rounds: that would decide at the spread seen; `None`: none would.
        is_settled: see `is_settled`.
    """
    if more_rounds is None:
        return is_settled or rounds >= MOST_ROUNDS
    return rounds + more_rounds > MOST_ROUNDS


def is_settled(rounds: int, *, is_record: bool) -> bool:
    """Whether the spread between sessions decides, because the other side is a record and so many rounds were
    measured. A record does not grow: what it cannot show then, it will not show."""
    return is_record and rounds >= ENOUGH_FOR_A_RECORD
