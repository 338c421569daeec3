"""Ctrl-C, `kill` and a closed terminal: during a sweep once ends it in good order, again leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from kvray.standard_error import say

_ENDING = "Ending in good order, with what has been measured; this takes seconds. Press Ctrl-C again to leave at once."
_SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))


@contextlib.contextmanager
def patient_interrupts(farewell: Callable[[], str]) -> Iterator[None]:
    """SIGINT, SIGTERM or SIGHUP raises `KeyboardInterrupt` and says that the end is under way; a second one says
    `farewell`, which may take a moment, and leaves; a third one leaves. A signal that was ignored (`nohup`) stays so.

    Leaving loses no trial that was shown as ended, except where an object store is slow. Of each sweep it may lose the
    one that ended last, whose record is being written. Ray's processes end with this one.
    """
    presses = 0

    def on_signal(signum: int, frame: FrameType | None) -> None:
        nonlocal presses
        del signum, frame
        presses += 1
        if presses == 1:
            say(f"kvray: {_ENDING}")
            raise KeyboardInterrupt
        try:
            if presses == 2:
                say(f"kvray: {farewell()}")
        finally:
            os._exit(130)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # that of a library in C, which Python cannot put back
                signal.signal(number, handler)


def leave_at_once_if_signalled(exit_code: int) -> None:
    """From here on there is nothing to lose: a signal ends the process with `exit_code`, without a word."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: os._exit(exit_code))
