"""The summary of a step of GitHub Actions: a file that the variable `GITHUB_STEP_SUMMARY` names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from kvray.check.outputs.markdown import MOST_BYTES, render_markdown
from kvray.check.result import CheckResult
from kvray.errors import OutputError

VARIABLE = "GITHUB_STEP_SUMMARY"
_LEAST_BYTES = 4096
"""With less room a check would lose what matters."""


def append_step_summary(result: CheckResult, environment: Mapping[str, str] | None = None) -> bool:
    """Append the check to the step's summary where there is one, in what room others have left in it.

    Returns:
        Whether it was appended.

    Raises:
        OutputError: the file cannot be written, or is full.
    """
    name = (os.environ if environment is None else environment).get(VARIABLE)
    if not name:
        return False
    path = Path(name)
    try:
        used = path.stat().st_size if path.exists() else 0
        room = MOST_BYTES - used - len("\n")
        if room < _LEAST_BYTES:
            raise OutputError(f"The summary of the step has no room left for the check: it holds {used:,} bytes.")
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" * (used > 0) + render_markdown(result, most_bytes=room))
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise OutputError(f"Cannot append to the step's summary {name!r} ({VARIABLE}): {why}.") from error
    return True
