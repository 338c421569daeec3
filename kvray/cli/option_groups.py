"""Commands that take whole groups of options: `@grouped` shows Typer one parameter for each option of a group."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_type_hints

from typer.models import OptionInfo

T = TypeVar("T")


def grouped(panels: Sequence[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function whose parameters may be dataclasses of options, which may hold further ones.

    Args:
        panels: titles of the help's panels in the order in which they are shown, after the one without a title.
    """

    def expand(function: Callable[..., None]) -> Callable[..., None]:
        types = get_type_hints(function, include_extras=True)
        parameters = [
            one
            for parameter in inspect.signature(function).parameters.values()
            for one in _options_of(parameter.replace(annotation=types[parameter.name]))
        ]
        parameters.sort(key=lambda one: _rank(one.annotation, panels))

        def command(**values: Any) -> None:
            function(**{name: _value_of(name, types[name], values) for name in types if name != "return"})

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # Typer reads it
        return command

    return expand


def _options_of(parameter: inspect.Parameter) -> Iterator[inspect.Parameter]:
    """`parameter` itself, or the options of its group; all of them keyword parameters, so that any order is allowed."""
    if not dataclasses.is_dataclass(parameter.annotation):
        yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        return
    types = get_type_hints(parameter.annotation, include_extras=True)
    for field in dataclasses.fields(parameter.annotation):
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        yield from _options_of(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[field.name])
        )


def group_of(kind: type[T], values: Mapping[str, Any]) -> T:
    """The group of type `kind` with what was given for its options; `values` may have further ones."""
    group: T = _value_of("", kind, values)
    return group


def _value_of(name: str, kind: Any, values: Mapping[str, Any]) -> Any:
    """What was given for the option `name`, or the group of type `kind` with what was given for its options."""
    if not dataclasses.is_dataclass(kind) or not isinstance(kind, type):
        return values[name]
    types = get_type_hints(kind, include_extras=True)
    return kind(**{field.name: _value_of(field.name, types[field.name], values) for field in dataclasses.fields(kind)})


def _rank(annotation: Any, panels: Sequence[str]) -> int:
    described = next((one for one in get_args(annotation) if isinstance(one, OptionInfo)), None)
    panel = None if described is None else described.rich_help_panel
    return 0 if panel is None else 1 + list(panels).index(panel)
