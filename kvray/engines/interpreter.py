"""`EnginePython`: the Python of another environment in which an engine's trials run, and what it has."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvray.engines.base import EngineAdapter
from kvray.engines.python_inspection import source_digest
from kvray.errors import EngineError
from kvray.extras import install_command
from kvray.probes.environment import UNKNOWN_VERSION, Environment, kvray_version
from kvray.search_paths import child_environment, python_command

_PACKAGE = Path(__file__).parents[1]
_INSPECTION = Path(__file__).with_name("python_inspection.py")
_ANSWER_S = 120.0


@dataclass(frozen=True, kw_only=True)
class EnginePython:
    """A Python that has been found fit for an engine.

    Attributes:
        path: of its executable, absolute. Never resolved: an environment's is a link, and known by its own path.
        engine_versions: of the engine's libraries there, by name.
    """

    path: str
    python_version: str
    engine_versions: Mapping[str, str] = field(default_factory=dict)

    def applied_to(self, environment: Environment) -> Environment:
        """`environment` with the software of this Python."""
        return replace(environment, python_version=self.python_version, engine_versions=self.engine_versions)


def python_variable(engine: str) -> str:
    """The environment variable that names the Python of `engine`, e.g. `KVRAY_VLLM_PYTHON`."""
    return f"KVRAY_{engine.upper().replace('-', '_')}_PYTHON"


def chosen_python(engine: str, *choices: Mapping[str, str]) -> str | None:
    """The absolute path of the Python in which `engine` is to run; `None`: the one that runs kvray.

    Args:
        choices: paths by engine; the first that has one counts, then the environment variable, if it comes before the
            last of `choices`.
    """
    first, *others = choices
    named = {engine: os.environ.get(python_variable(engine), "")}
    path = next((one[engine] for one in (first, named, *others) if one.get(engine)), None)
    if path is None:
        return None
    absolute = str(Path(path).expanduser().absolute())
    return None if absolute == python_command()[0] else absolute


def inspect_python(path: str, adapter: EngineAdapter) -> EnginePython:
    """Ask the Python at `path` what it has: it must be able to run the trials of `adapter`.

    Raises:
        EngineError: it is not there, is no Python, has no kvray or another one, or lacks the engine's library.
    """
    source = source_digest(_PACKAGE)
    kind = type(adapter)
    question = {"adapter": f"{kind.__module__}:{kind.__qualname__}", "libraries": adapter.libraries, "source": source}
    answer = _asked(path, adapter.name, question)
    where, own = f"The Python of engine {adapter.name!r}, {path!r},", kvray_version()
    command = install_command(*([] if adapter.extra is None else [adapter.extra]), python=path)
    install = f"Install the same kvray there: {command}"
    if answer["source"] is None:
        raise EngineError(f"{where} has no kvray.", hint=install)
    if (there := answer["kvray"] or UNKNOWN_VERSION) != own:
        raise EngineError(f"{where} has kvray {there}, and this is {own}.", hint=install)
    if answer["source"] != source:
        raise EngineError(f"{where} has a kvray {own} with other code than this one.", hint=install)
    missing = [name for name in adapter.libraries if name not in answer["versions"]]
    problem = f"{', '.join(missing)} is not installed" if missing else answer["problem"]
    if problem:
        hint = f"Install it there: {command}" if missing else "Install what it needs with that Python's pip."
        raise EngineError(f"{where} cannot run it: {problem.rstrip('.')}.", hint=hint)
    return EnginePython(path=path, python_version=answer["python"], engine_versions=answer["versions"])


def _asked(path: str, engine: str, question: dict[str, Any]) -> dict[str, Any]:
    try:
        done = subprocess.run(
            python_command(str(_INSPECTION), json.dumps(question), python=path),
            capture_output=True,
            check=False,
            env=child_environment(python=path),
            stdin=subprocess.DEVNULL,
            timeout=_ANSWER_S,
        )
        answer = json.loads(done.stdout.splitlines()[-1])
    except OSError as error:
        raise EngineError(
            f"The Python of engine {engine!r}, {path!r}, cannot be started: {error.strerror}.",
            hint=f"Name the python of a virtual environment with --engine-python or {python_variable(engine)}.",
        ) from error
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        answer = None
    if not isinstance(answer, dict) or answer.keys() != {"python", "kvray", "source", "versions", "problem"}:
        raise EngineError(
            f"{path!r}, which is to run engine {engine!r}, is no Python 3.11 or later.",
            hint=f"Name the python of a virtual environment with --engine-python or {python_variable(engine)}.",
        )
    return answer
