"""Standard streams that are closed, full, or that nobody reads any more: no reason to stop measuring."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO


def open_closed_streams() -> None:
    """Open what the shell closed (`>&-`) on nothing, or the next file that is opened would become it."""
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest free number
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def patient(stream: TextIO, *, apart: bool = False) -> TextIO:
    """`stream` as a `PatientStream`, if it is one of the operating system's; a test's own is taken as it is.

    Args:
        apart: on a descriptor of its own (see `kvray.standard_error`).
    """
    try:
        return PatientStream(stream, apart=apart)
    except io.UnsupportedOperation:
        return stream


class PatientStream(io.TextIOWrapper):
    """Text on a file descriptor; what cannot be written is lost without an error.

    Attributes:
        failure: why something was lost, if anybody was there to read it.
    """

    def __init__(self, stream: TextIO, *, apart: bool = False) -> None:
        self.failure: OSError | None = None
        number = os.dup(stream.fileno()) if apart else stream.fileno()
        binary = io.BufferedWriter(io.FileIO(number, "w", closefd=apart))
        super().__init__(binary, encoding=stream.encoding, errors=stream.errors, line_buffering=True)

    def write(self, text: str) -> int:
        """As `TextIO.write`."""
        with self._patience():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """As `TextIO.flush`."""
        with self._patience():
            super().flush()

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # whoever read it (`| head`) has left: no reason to complain
            pass
        except OSError as error:
            self.failure = error
