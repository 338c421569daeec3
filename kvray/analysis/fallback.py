"""What to use when the winner does not fit: measured candidates that need less memory, leanest last."""

from __future__ import annotations

from dataclasses import dataclass

from kvray.record import TrialRecord


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """A measured candidate that ran with less peak memory than the one before it in the chain."""

    record: TrialRecord
    peak_mib: float
    reason: str
