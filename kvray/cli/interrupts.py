"""Ctrl-C during a sweep: once ends it in good order, again does not break that off unasked."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

_ENDING = "Ending already; this takes seconds. Press Ctrl-C once more to leave at once, without a report."


@contextlib.contextmanager
def patient_interrupts(farewell: Callable[[], str]) -> Iterator[None]:
    """Ctrl-C raises `KeyboardInterrupt`, again says that the end is under way, a third time says `farewell` and leaves.

    Leaving loses no record: each is durable before its trial is reported. Ray's processes end with this one.
    """
    presses = itertools.count(1)

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        press = next(presses)
        if press == 1:
            raise KeyboardInterrupt
        _say(_ENDING if press == 2 else farewell())
        if press > 2:
            os._exit(130)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say(text: str) -> None:
    """Write to stderr past its buffer: the signal may have come in the middle of a `print`."""
    os.write(2, f"kvray: {text}\n".encode())
