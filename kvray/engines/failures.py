"""How an engine says that it cannot do what a candidate asks for. Each becomes a status of the trial."""

from __future__ import annotations

from kvray.errors import KvrayError


class UnsupportedError(KvrayError):
    """The engine refuses a configuration; the message carries the engine's own words."""


class SubstitutedError(KvrayError):
    """The engine ran something other than what the candidate asks for."""


class OutOfMemoryError(KvrayError):
    """The engine ran out of device or host memory. Only allocating less helps."""
