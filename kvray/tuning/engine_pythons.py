"""In which Python the trials of an engine run, where that is not kvray's own: found before any trial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kvray.config import TuneConfig
from kvray.engines.base import EngineAdapter
from kvray.engines.interpreter import EnginePython, chosen_python, inspect_python
from kvray.engines.registry import get_engine


def found_pythons(
    config: TuneConfig, adapters: Iterable[EngineAdapter], *, recorded: Mapping[str, str]
) -> dict[str, EnginePython]:
    """By the names of those of `adapters` that have a Python of their own: as the user has it now, else as `recorded`.

    Args:
        recorded: paths that the sweep which is resumed has in its manifest.

    Raises:
        EngineError: a Python is named for an engine that is not known, or cannot run the engine's trials.
    """
    known = {adapter.name: adapter for adapter in adapters}
    for name in config.engine_pythons.keys() - known.keys():
        get_engine(name)
    paths = {name: chosen_python(name, config.engine_pythons, recorded) for name in known}
    return {name: inspect_python(path, known[name]) for name, path in paths.items() if path is not None}
