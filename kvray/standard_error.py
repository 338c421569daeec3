"""Standard error apart from descriptor 2: a command line writes to a copy of it, so that what libraries in C write to
descriptor 2 can go to a log meanwhile."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_C_STDERR = 2


def own_descriptor() -> int | None:
    """The number of the file that lines for a person are written to; `None` if libraries in C write there too."""
    try:
        number = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # a notebook's, a test's
        return None
    return None if number == _C_STDERR else number


def say(text: str) -> None:
    """Write a line past all buffers: the program may be about to end, or a signal may have come in mid-`print`."""
    with contextlib.suppress(OSError):  # a terminal that was closed
        os.write(own_descriptor() or _C_STDERR, f"{text}\n".encode())


@contextlib.contextmanager
def c_libraries_write_to(log: Path) -> Iterator[None]:
    """What libraries in C say is appended to `log`. In a program whose own standard error is descriptor 2 nothing
    changes: its lines would go there too."""
    if own_descriptor() is None:
        yield
        return
    before = os.dup(_C_STDERR)
    try:
        with contextlib.suppress(OSError), log.open("ab") as file:  # a full disk costs the words, not the sweep
            os.dup2(file.fileno(), _C_STDERR)
        yield
    finally:
        os.dup2(before, _C_STDERR)
        os.close(before)
