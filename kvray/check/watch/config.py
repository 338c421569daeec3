"""What a user asks of `kvray watch`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path

from kvray.check.config import Consent
from kvray.check.watch.states import CONFIRMING, PROCESSES

WAIT_QUIET_S = 900.0


class WhenBusy(enum.StrEnum):
    """What to do where others use the machine."""

    WAIT = "wait"
    MEASURE = "measure"


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What a user asks of a watch.

    Attributes:
        every_s: between the beginnings of two observations; `None`: one observation only.
        output_dir: folder of the history; `None`: `watch` beside the plan.
        wait_quiet_s: for how long an observation waits for a quiet machine before it is skipped.
        timeout_s: seconds that one phase of a process may take.
    """

    plan: str
    every_s: float | None = None
    output_dir: str | None = None
    when_busy: WhenBusy = WhenBusy.WAIT
    wait_quiet_s: float = WAIT_QUIET_S
    processes: int = PROCESSES
    confirming: int = CONFIRMING
    timeout_s: float = 600.0
    consent: Consent = field(default_factory=Consent)

    @property
    def folder(self) -> str:
        """Where the history lies."""
        return self.output_dir or str(Path(self.plan).parent / "watch")
