"""Engines by name, found through the entry-point group `kvray.engines`."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from kvray.engines.base import EngineAdapter
from kvray.errors import EngineError, did_you_mean

GROUP = "kvray.engines"


def list_engines(*, include_tests: bool = False) -> tuple[str, ...]:
    """Names of the installed engines, sorted; those made for tests only when asked for."""
    names = sorted(_entry_points())
    return tuple(name for name in names if include_tests or name != "fake")


def get_engine(name: str) -> EngineAdapter:
    """A new adapter of the engine called `name`.

    Raises:
        EngineError: unknown, or what it needs is not installed.
    """
    found = _entry_points().get(name)
    if found is None:
        known = list_engines()
        raise EngineError(f"Unknown engine {name!r}.", hint=f"{did_you_mean(name, known)}Allowed: {', '.join(known)}.")
    try:
        adapter = found.load()()
    except ImportError as error:
        raise EngineError(f"Engine {name!r} cannot be imported: {error}.", hint="Install what it needs.") from error
    if not isinstance(adapter, EngineAdapter):
        raise EngineError(f"Engine {name!r} ({found.value}) is not an EngineAdapter.")
    return adapter


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
