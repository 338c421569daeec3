"""How many broken and hostile inputs of each kind the tests have fed to kvray, in all processes that run tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Tally:
    """The inputs of one kind."""

    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0


TALLIES: dict[str, Tally] = {}


def counted() -> list[tuple[str, int, int]]:
    """What this process has fed: kind, inputs, and how many of them were accepted."""
    return [(kind, tally.inputs, tally.accepted) for kind, tally in TALLIES.items()]


def add(counts: Iterable[tuple[str, int, int]]) -> None:
    """Count what another process has fed, too."""
    for kind, inputs, accepted in counts:
        tally = TALLIES.setdefault(kind, Tally())
        tally.inputs += inputs
        tally.accepted += accepted


def summary() -> str | None:
    """One line; `None` where nothing was fed."""
    if not TALLIES:
        return None
    fed = (f"{kind} {tally.inputs:,} ({tally.accepted:,})" for kind, tally in sorted(TALLIES.items()))
    total = sum(tally.inputs for tally in TALLIES.values())
    return f"broken and hostile inputs fed: {total:,} (accepted): {', '.join(fed)}"
