"""What a Python has of kvray and of an engine's libraries. Runs as a script in that very Python, where kvray may be
missing: it imports the standard library alone until it has found the same kvray there."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any


def source_digest(folder: Path) -> str:
    """Over all Python files below `folder`, the package's own: objects travel between two kvrays of the same source."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
        digest.update(file.read_bytes())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def inspect(question: dict[str, Any]) -> dict[str, Any]:
    """What is here.

    Args:
        question: `adapter`, as `module:class`; its `libraries`; and the digest `source` of the kvray that asks.

    Returns:
        `python`: its version; `kvray`: version of the one here, `None` without one; `source`: its digest; `versions` of
        the libraries that are here; `problem`: why the engine cannot run here although kvray is the same.
    """
    answer: dict[str, Any] = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "kvray": _version("kvray"),
        "source": None,
        "versions": {name: version for name in question["libraries"] if (version := _version(name)) is not None},
        "problem": None,
    }
    found = importlib.util.find_spec("kvray")
    if found is not None and found.origin is not None:
        answer["source"] = source_digest(Path(found.origin).parent)
    if answer["source"] == question["source"]:
        answer["problem"] = _problem(question["adapter"])
    return answer


def _problem(adapter: str) -> str | None:
    module, _, name = adapter.partition(":")
    try:
        importlib.import_module("kvray.trial.child")
        getattr(importlib.import_module(module), name)().check_installed()
    except Exception as error:  # noqa: BLE001  (the boundary: another environment may lack anything)
        return str(error)
    return None


def _version(package: str) -> str | None:
    """The same as `probes.environment` says: a library may publish what it builds for CPUs under a longer name."""
    for name in (package, f"{package}-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


if __name__ == "__main__":
    sys.stdout.write(json.dumps(inspect(json.loads(sys.argv[1]))) + "\n")
