"""What a user narrows, by axis: the values that options and `TuneConfig` name, read by the engine's declaration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from kvray.candidate import SINGLE, SPLIT, ParamValue, setting_text
from kvray.config import TuneConfig
from kvray.errors import InvalidValueError, did_you_mean
from kvray.space.axis import UNSET, Axis
from kvray.space.menu import SHARED_AXES

_OPTIONS: Mapping[str, str] = {
    **{name: f"--{name}" for name in SHARED_AXES},
    "batch_size": "--batch-sizes",
    "parallelism": "--parallelism",
}
"""Axes that all engines share have options of their own."""


def asked_values(config: TuneConfig, axes: Sequence[Axis]) -> dict[str, tuple[Any, ...]]:
    """Parsed values of those of the engine's `axes` that `config` narrows.

    Raises:
        InvalidValueError: an axis has no such value.
    """
    shared = {
        "cache": config.caches,
        "attention": config.attentions,
        "dtype": config.dtypes,
        "compile": config.compiles,
    }
    own = {axis.name: axis for axis in axes if axis.name not in SHARED_AXES}
    asked: dict[str, tuple[Any, ...]] = {
        **shared,
        **{name: _parsed(own[name], values) for name, values in config.settings.items() if name in own},
    }
    return {name: values for name, values in asked.items() if values}


def check_settings(
    config: TuneConfig, axes: Iterable[Axis], *, left_out: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Refuse a setting that none of `axes` stands for.

    Args:
        axes: of all engines of the sweep: what one of them has narrows that one alone.
        left_out: why, by the name of each engine that was asked for and takes no part: the axis may be its own.

    Raises:
        InvalidValueError
    """
    declared = {axis.name: axis.option for axis in axes if axis.name not in SHARED_AXES}
    options = {**_OPTIONS, **{name: option for name, option in declared.items() if option}}
    own = {name for name, option in declared.items() if not option}
    for name in config.settings:
        if name in options:
            raise InvalidValueError(f"Axis {name!r} has an option of its own.", hint=f"Use {options[name]}.")
        if name not in own:
            known = f"It has {', '.join(sorted(own))}." if own else "It has none of its own."
            absent = "".join(f" Engine {engine} is left out: {reason}" for engine, reason in left_out.items())
            taking_part = ",".join(engine for engine in config.engines if engine not in left_out)
            raise InvalidValueError(
                f"Engine {taking_part} has no axis {name!r}.",
                hint=f"{did_you_mean(name, own)}{known}{absent or ' kvray info lists the axes of every engine.'}",
            )


def check_parallelism(config: TuneConfig, axes: Iterable[Axis]) -> None:
    """Refuse a way to spread a model that none of `axes` (of all engines) knows.

    Raises:
        InvalidValueError
    """
    known = sorted({one.value for axis in axes if axis.name == SPLIT for one in axis.values})
    for choice in config.parallelism:
        if choice.split is not None and choice.split not in known:
            allowed = [SINGLE, *(f"{way}={choice.gpus}" for way in known)] if known else [SINGLE, str(choice.gpus)]
            raise InvalidValueError.not_one_of(f"parallelism of engine {config.engine}", str(choice), allowed)


def _parsed(axis: Axis, values: Sequence[ParamValue | None]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(axis.parse(UNSET if value is None else setting_text(value)) for value in values))
