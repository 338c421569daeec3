"""Waits for a bounded time until nobody else uses the machine: beside others the configuration would be blamed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from kvray.candidate import DeviceType
from kvray.probes.contention import NEWS_S, QUIET_LOOKS, disturbers

Look = Callable[[DeviceType], Sequence[str]]
_PAUSE_S = 1.0
_CONSEQUENCE = ": what is measured now will be disturbed."


def busy_reason(device: DeviceType, look: Look = disturbers) -> str | None:
    """Who uses `device` now, in one line; `None`: nobody."""
    return "; ".join(sentence.removesuffix(_CONSEQUENCE) for sentence in look(device)) or None


def wait_for_quiet(
    device: DeviceType,
    most_s: float,
    *,
    tell: Callable[[str], None],
    look: Look = disturbers,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> str | None:
    """Wait for at most `most_s`. Returns who still uses `device` then; `None` as soon as nobody does."""
    reason = busy_reason(device, look)
    if reason is None:
        return None
    started, told_at, quiet = clock(), None, 0
    while (waited_s := clock() - started) < most_s:
        if reason is not None and (told_at is None or waited_s - told_at >= NEWS_S):
            tell(f"Waiting for quiet, {waited_s / 60:.0f} of {most_s / 60:.0f} min: {reason}.")
            told_at = waited_s
        pause(min(_PAUSE_S, most_s - waited_s))
        reason = busy_reason(device, look)
        quiet = quiet + 1 if reason is None else 0
        if quiet >= QUIET_LOOKS:
            return None
    return busy_reason(device, look)
