"""How an engine says that it cannot do what a candidate asks for. Each becomes a status of the trial."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from kvray.errors import KvrayError

LAST_WORDS = "kvray: crashed: "
"""Begins the line that `tell_crash` prints. If the process dies, what follows becomes the message of the trial."""


class UnsupportedError(KvrayError):
    """The engine refuses a configuration; the message carries the engine's own words."""


class SubstitutedError(KvrayError):
    """The engine ran something other than what the candidate asks for."""


class CrashedError(KvrayError):
    """A process of the engine's own has died, or can no longer be used; the message carries its last words."""


class OutOfMemoryError(KvrayError):
    """The engine ran out of device or host memory. Only allocating less helps."""


def tell_crash(reason: str) -> None:
    """Print why this process can no longer be used, in case a library hangs or ends it before it can say so."""
    sys.stderr.write(f"{LAST_WORDS}{' '.join(reason.split())}\n")
    sys.stderr.flush()


def give_up(reason: str) -> NoReturn:
    """End this process at once, from any thread, because another one hangs in a library and will not return. The trial
    has crashed then, with `reason` as its message."""
    tell_crash(reason)
    os._exit(1)
