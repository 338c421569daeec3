"""The command line that serves a plan's winner with the server of its own engine."""

from __future__ import annotations

import shlex

from kvray.engines.registry import get_engine
from kvray.plan.plan import Plan
from kvray.plan.snippet import pinned_winner, winner_request


def serving_command(plan: Plan) -> str | None:
    """One line for a POSIX shell, quoted where that is needed; `None` where the winner's engine has no server.

    Raises:
        EngineError: the winner's engine is unknown, or what it needs is not installed.
    """
    winner = pinned_winner(plan)
    words = get_engine(plan.engine).serving_command(
        winner_request(plan),
        candidate=winner,
        device=plan.device,
        cells=plan.profile.cells(winner.batch_size, rung=2),
    )
    return None if words is None else shlex.join(words)
