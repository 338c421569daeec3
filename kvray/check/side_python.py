"""Why the program of a check's side did not start in the Python that was named for it."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterable, Iterator
from typing import Any

from kvray.engines.registry import get_engine
from kvray.errors import EngineError, InvalidValueError
from kvray.extras import Extra, install_command
from kvray.search_paths import child_environment, python_command

_ANSWER_S = 60.0
_QUESTION = """
import importlib.metadata as metadata, importlib.util as util, json
def found(name):
    try:
        return util.find_spec(name) is not None
    except ImportError:
        return False
version = metadata.version("kvray") if found("kvray") and list(metadata.distributions(name="kvray")) else None
print(json.dumps({"kvray": found("kvray"), "version": version, "program": found("kvray.check.side_program")}))
"""


def start_problem(side: str, python: str | None, engines: Iterable[str], last_words: str) -> EngineError:
    """The error for `side`, whose program has ended before it had said what it is.

    Args:
        python: path of its interpreter; `None`: this one.
        engines: those that are to measure there.
        last_words: the last thing that it printed.
    """
    here = _looked_at(python)
    if here is None:
        return EngineError(
            f"{side} is no Python 3.11 or later.",
            hint="Name the python of a virtual environment, as in --against python=/envs/new/bin/python.",
        )
    install = install_command(*_extras_of(engines), python=python)
    if not here["kvray"]:
        return EngineError(f"{side} has no kvray, which measures there.", hint=f"Install it: {install}")
    if not here["program"]:
        version = here["version"] or "of an unknown version"
        return EngineError(f"{side} has kvray {version}, which is too old for checks.", hint=f"Replace it: {install}")
    return EngineError(f"{side} cannot measure: {last_words.rstrip('.')}.", hint="Install what it lacks there.")


def _extras_of(engines: Iterable[str]) -> Iterator[Extra]:
    for name in engines:
        with contextlib.suppress(InvalidValueError, EngineError):
            if (extra := get_engine(name).extra) is not None:
                yield extra


def _looked_at(python: str | None) -> dict[str, Any] | None:
    """What the interpreter has; `None` where it cannot say."""
    try:
        done = subprocess.run(
            python_command("-c", _QUESTION, python=python),
            capture_output=True,
            check=False,
            env=child_environment(python=python),
            stdin=subprocess.DEVNULL,
            timeout=_ANSWER_S,
        )
        answer = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None
    return answer if isinstance(answer, dict) and answer.keys() == {"kvray", "version", "program"} else None
