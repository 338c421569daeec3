"""Output on terminals that cannot show every sign: what has a plain spelling gets it, and nothing fails."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable
from typing import TextIO

ERRORS = "kvray.plain"
_PLAIN = {
    "×": "x",
    "·": "-",
    "…": "...",
    "→": "->",
    "±": "+-",
    "−": "-",
    "–": "-",
    "\N{FIGURE SPACE}": " ",
    "\N{NARROW NO-BREAK SPACE}": " ",
    "\N{NO-BREAK SPACE}": " ",
}


def show_all_signs(streams: Iterable[TextIO]) -> None:
    """Let none of `streams` raise on what its encoding lacks, e.g. `×` in ASCII."""
    codecs.register_error(ERRORS, _spell_plainly)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def _spell_plainly(error: UnicodeError) -> tuple[str, int]:
    """Signs without a plain spelling become escapes, which in printed code mean the same."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    plain = (_PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in signs)
    return "".join(plain), error.end
