"""The menu: every value of every axis that an engine declares, and what stands in the way of it on this machine.

Four axes are columns that all engines share; an engine declares only which of their values it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvray.candidate import (
    AttentionBackend,
    AttentionChoice,
    CacheChoice,
    CacheStrategy,
    Candidate,
    CompileMode,
    DType,
    ParamValue,
)
from kvray.errors import NoCandidatesError
from kvray.space.axis import Axis, AxisKind, AxisValue
from kvray.space.constraints import Constraint, SpaceFacts

_PARSERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "cache": (CacheStrategy.axis_name(), CacheChoice.parse),
    "attention": (AttentionBackend.axis_name(), AttentionChoice.parse),
    "dtype": (DType.axis_name(), DType.parse),
    "compile": (CompileMode.axis_name(), CompileMode.parse),
}
_UNKNOWN = "unknown to this engine"
SHARED_AXES = tuple(_PARSERS)
"""Axes that are columns which all engines share; each has an option of its own."""


@dataclass(frozen=True, kw_only=True)
class MenuLine:
    """One value of one axis, with `obstacle` and `on_request` as `AxisValue` has them."""

    axis: str
    value: str
    obstacle: str | None = None
    on_request: str | None = None


def shared_axis(
    name: str, values: Iterable[AxisValue], *, follows: Callable[[Candidate], Candidate] | None = None
) -> Axis:
    """The axis of `SHARED_AXES` called `name`, with the values that an engine has and `Axis.follows`."""
    title, parser = _PARSERS[name]
    axis = Axis(name=name, title=title, kind=AxisKind.CHOICE, values=tuple(values), parser=parser)
    return axis if follows is None else replace(axis, follows=follows)


def menu_of(axes: Sequence[Axis]) -> tuple[MenuLine, ...]:
    """Every value of `axes`, in order."""
    return tuple(
        MenuLine(axis=axis.name, value=one.value, obstacle=one.obstacle, on_request=one.on_request)
        for axis in axes
        for one in axis.values
    )


def lines_of(candidate: Candidate, axes: Sequence[Axis]) -> tuple[tuple[str, str], ...]:
    """(axis, value) of the lines that `candidate` stands for; a cache is on the menu with its settings or without."""
    own = [
        (axis.name, line)
        for axis in axes
        if axis.name not in SHARED_AXES and (value := _value_of(candidate, axis)) is not None
        for line in axis.lines_of(value)
    ]
    return (
        ("cache", str(candidate.cache_choice)),
        ("cache", candidate.cache.value),
        ("attention", candidate.attention.value),
        ("dtype", candidate.dtype.value),
        ("compile", candidate.compile.value),
        *own,
    )


def _value_of(candidate: Candidate, axis: Axis) -> ParamValue | None:
    """What the engine does on this axis, `None` where that is not known."""
    value = candidate.setting(axis.name)
    return axis.default if value is None else value


def available_here(axes: Sequence[Axis]) -> Constraint:
    """Rejects what the menu has an obstacle for, with that obstacle, and values of shared axes that it does not know:
    where several engines are asked, they may be another one's."""
    obstacles = {(line.axis, line.value): line.obstacle for line in menu_of(axes) if line.obstacle}
    by_name = {axis.name: axis for axis in axes}

    def check(candidate: Candidate, facts: SpaceFacts) -> str | None:
        del facts
        if (foreign := _foreign_value(candidate, axes)) is not None:
            return f"{foreign}: {_UNKNOWN}"
        found = next((pair for pair in lines_of(candidate, axes) if pair in obstacles), None)
        if found is None:
            return None
        axis, value = found
        return f"{_told(by_name[axis], value)}: {obstacles[found]}"

    return Constraint(name="available-here", check=check)


def _foreign_value(candidate: Candidate, axes: Sequence[Axis]) -> str | None:
    """The first value of a shared axis that the engine declares no line for."""
    known = {axis.name: {one.value.partition("(")[0] for one in axis.values} for axis in axes}
    values = {
        "cache": candidate.cache.value,
        "attention": candidate.attention.value,
        "dtype": candidate.dtype.value,
        "compile": candidate.compile.value,
    }
    return next((value for name, value in values.items() if name in known and value not in known[name]), None)


def check_any_available(asked: Mapping[str, Sequence[Any]], axes: Sequence[Axis]) -> None:
    """Refuse a narrowed axis of which nothing can be had here, with the reasons.

    Args:
        asked: parsed values by axis; a value of `None` (not set) can always be had.

    Raises:
        NoCandidatesError
    """
    declared = {axis.name: axis for axis in axes}
    for name, values in asked.items():
        axis = declared.get(name) or shared_axis(name, ())
        lines = [_asked_lines(axis, value) for value in values]
        if not lines or not all(lines):
            continue
        obstacles = {one.value: one.obstacle for one in axis.values}
        reasons = {line: _obstacle(line, obstacles) for some in lines for line in some}
        if all(reasons.values()):
            available = ", ".join(value for value, obstacle in obstacles.items() if obstacle is None)
            told = "; ".join(f"{_told(axis, value)}: {reason}" for value, reason in reasons.items())
            hint = f"Available here: {available}." if available else f"Leave {name} out."
            raise NoCandidatesError(f"No valid candidate is left: {told}.", hint=hint)


def _told(axis: Axis, value: str) -> str:
    """A value as messages name it: those of shared axes are known by themselves, and a number by its axis."""
    if axis.name in SHARED_AXES:
        return value
    return axis.name if axis.kind is AxisKind.NUMBER else f"{axis.name} {value}"


def _asked_lines(axis: Axis, value: Any) -> tuple[str, ...]:
    """The lines whose obstacles stand in the way of `value`: none for what is not set, for a number that has no line,
    and for a family's name, such as a bare `quantized`, which means several."""
    if value is None:
        return ()
    if axis.name not in SHARED_AXES:
        return axis.lines_of(value)
    if isinstance(value, AttentionChoice):
        return (value.backend.value,)
    family = [one.value for one in axis.values if one.value.startswith(f"{value}(")]
    return () if family else (str(value),)


def _obstacle(value: str, obstacles: Mapping[str, str | None]) -> str | None:
    """The obstacle of a value. With other settings than the menu's it is that of the bare name, if there is one."""
    bare = value.partition("(")[0]
    if value in obstacles or bare in obstacles:
        return obstacles.get(value) or obstacles.get(bare)
    related = [obstacle for name, obstacle in obstacles.items() if name.partition("(")[0] == bare]
    return None if None in related else (related or [_UNKNOWN])[0]
