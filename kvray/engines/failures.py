"""How an engine says that it cannot do what a candidate asks for. Each becomes a status of the trial."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from kvray.errors import KvrayError

LAST_WORDS = "kvray: this process gives up: "
"""Begins the line that `give_up` prints; what follows in it becomes the message of the trial."""


class UnsupportedError(KvrayError):
    """The engine refuses a configuration; the message carries the engine's own words."""


class SubstitutedError(KvrayError):
    """The engine ran something other than what the candidate asks for."""


class CrashedError(KvrayError):
    """A process of the engine's own has died, or can no longer be used; the message carries its last words."""


class OutOfMemoryError(KvrayError):
    """The engine ran out of device or host memory. Only allocating less helps."""


def give_up(reason: str) -> NoReturn:
    """End this process at once, from any thread, because another one hangs in a library and will not return. The trial
    has crashed then, with `reason` as its message."""
    sys.stderr.write(f"{LAST_WORDS}{' '.join(reason.split())}\n")
    sys.stderr.flush()
    os._exit(1)
