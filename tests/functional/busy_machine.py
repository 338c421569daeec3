"""What kvray says of a machine that has other work to do: no fault of what a test looks at."""

from __future__ import annotations

import re

_SAID = re.compile(
    r"(kvray: warning: )?(Other programs keep |Another sweep, |While this device's rates were measured, other programs "
    r"|[\d,]+ of [\d,]+ runs were disturbed)"
)


def other_lines(text: str) -> list[str]:
    """The lines of `text` that say something else."""
    return [line for line in text.splitlines() if not _SAID.match(line)]
