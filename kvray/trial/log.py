"""What a measurement process prints: one file, which the slot keeps small and whose last lines go into the record."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from kvray.engines.failures import LAST_WORDS
from kvray.files.redaction import redact

LIMIT_BYTES = 16 * 2**20
_TAIL_BYTES = 16_000
_TAIL_CHARS = 4000
_TAIL_LINES = 30


def scratch_of(log: Path) -> Path:
    """The folder for the temporary files of the process that writes `log`. Short: sockets may lie in it."""
    return log.parent / "tmp"


class TrialLog:
    """The file at `path`, to which the process appends whatever goes to its stdout and stderr."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def bound(self) -> None:
        """Drop all but the end of a log that has grown too long.

        A trial that prints gigabytes is no failure, so it goes on. A limit by the kernel (RLIMIT_FSIZE) would end it,
        or its engine's downloads and compilations, of which the files are longer than any log.
        """
        with contextlib.suppress(OSError):
            if self.path.stat().st_size > LIMIT_BYTES:
                end = self._end()
                # The process writes with O_APPEND: it goes on at the new end.
                with self.path.open("r+b") as file:
                    file.truncate(0)
                with self.path.open("ab") as file:
                    file.write(end)

    def tail(self) -> str | None:
        """The last lines without secrets; `None` if there are none."""
        with contextlib.suppress(OSError):
            # Cut afterwards: a secret that the first cut has halved is not among the last characters.
            text = redact(self._end().decode("utf-8", errors="replace").replace("\0", ""))[-_TAIL_CHARS:]
            return "\n".join(text.splitlines()[-_TAIL_LINES:]).strip() or None
        return None

    def last_words(self) -> str | None:
        """What the process told of its crash (`failures.tell_crash`), if it did."""
        lines = (self.tail() or "").splitlines()
        return next((line.removeprefix(LAST_WORDS) for line in reversed(lines) if line.startswith(LAST_WORDS)), None)

    def _end(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read(_TAIL_BYTES)
