"""Keeps the working folder out of where this process, and those that it starts, look for code.

The working folder may be a model that somebody else has made, and a `yaml.py` or `torch.py` in it must not be imported.
This module itself imports only what Python has loaded before: it runs before anything else is looked for.
"""

import os
import sys

_VARIABLES = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
"""Lists of folders; an empty entry means the working folder, as `.` does."""
_FOLDERS = (
    *("KVRAY_CACHE", "XDG_CACHE_HOME", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TMPDIR"),
    *("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_MODULES_CACHE", "TRANSFORMERS_CACHE"),
)
"""Folders that a trial, which runs in another working folder, must find where the user has them."""
_OF_THIS_PYTHON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
_SAFE_PATH = "PYTHONSAFEPATH"
"""Keeps Python from adding the working folder (for `-m` and `-c`) or the script's (python(1), 3.11)."""


def leave_out_working_folder() -> list[str]:
    """Take the working folder, and all folders named relative to it, out of this process's search for modules and out
    of the environment of what it starts. Returns what was asked for by name and is left out, for a warning.
    """
    asked = os.environ.get("PYTHONPATH", "")
    if not sys.flags.ignore_environment:
        for entry in _relative_entries(asked):
            _remove(os.path.abspath(entry))
    sys.path[:] = [entry for entry in sys.path if os.path.isabs(entry)]
    left_out = [
        f"{name}={entry}"
        for name in _VARIABLES
        for entry in _relative_entries(os.environ.get(name, ""))
        if entry not in ("", os.curdir)
    ]
    safe = child_environment()
    for name in (*_VARIABLES, _SAFE_PATH):
        os.environ.pop(name, None)
        if name in safe:
            os.environ[name] = safe[name]
    return left_out


def safe_environment() -> dict[str, str | None]:
    """Changes to this process's environment under which a Python that is started, and whatever it starts, looks for no
    code in the working folder, and finds caches wherever it runs; `None` stands for a variable to be removed."""
    changes: dict[str, str | None] = {_SAFE_PATH: "1"}
    for name in _VARIABLES:
        entries = os.environ.get(name, "").split(os.pathsep)
        absolute = [entry for entry in entries if os.path.isabs(entry)]
        if name in os.environ and absolute != entries:
            changes[name] = os.pathsep.join(absolute) or None
    for name in _FOLDERS:
        folder = os.environ.get(name, "")
        if folder and not os.path.isabs(folder) and folder[0] not in "~$":  # the hub's client expands these
            changes[name] = os.path.abspath(folder)
    return changes


def python_command(*arguments: str, python: str | None = None) -> list[str]:
    """The command of an interpreter like this one, or of that at the path `python`. To be started with
    `child_environment()`."""
    return [python or sys.executable, "-P", *arguments]


def child_environment(*, python: str | None = None) -> dict[str, str]:
    """A copy of this process's environment, made safe. For the interpreter at the path `python`, which has an
    environment of its own, without what leads to this one's."""
    merged = {**os.environ, **safe_environment()}
    left_out = () if python is None else _OF_THIS_PYTHON
    return {name: value for name, value in merged.items() if value is not None and name not in left_out}


def _relative_entries(value: str) -> list[str]:
    return [entry for entry in value.split(os.pathsep) if not os.path.isabs(entry)] if value else []


def _remove(folder: str) -> None:
    """Once: what names it a second time did so by its absolute path."""
    if folder in sys.path:
        sys.path.remove(folder)
