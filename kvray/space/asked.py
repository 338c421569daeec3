"""What a user narrows, by axis: the values that options and `TuneConfig` name, read by the engine's declaration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvray.candidate import ParamValue, setting_text
from kvray.config import TuneConfig
from kvray.errors import InvalidValueError, did_you_mean
from kvray.space.axis import UNSET, Axis
from kvray.space.menu import SHARED_AXES

_OPTIONS: Mapping[str, str] = {**{name: f"--{name}" for name in SHARED_AXES}, "batch_size": "--batch-sizes"}
"""Axes that all engines share have options of their own."""


def asked_values(config: TuneConfig, axes: Sequence[Axis]) -> dict[str, tuple[Any, ...]]:
    """Parsed values of the axes that `config` narrows.

    Raises:
        InvalidValueError: the engine has no such axis, or an axis has no such value.
    """
    shared = {
        "cache": config.caches,
        "attention": config.attentions,
        "dtype": config.dtypes,
        "compile": config.compiles,
    }
    own = {axis.name: axis for axis in axes if axis.name not in SHARED_AXES}
    for name in config.settings:
        _check_name(name, own, config.engine)
    asked: dict[str, tuple[Any, ...]] = {
        **shared,
        **{name: _parsed(own[name], v) for name, v in config.settings.items()},
    }
    return {name: values for name, values in asked.items() if values}


def _check_name(name: str, own: Mapping[str, Axis], engine: str) -> None:
    if name in own:
        return
    if name in _OPTIONS:
        raise InvalidValueError(f"Axis {name!r} has an option of its own.", hint=f"Use {_OPTIONS[name]}.")
    known = f"It has {', '.join(own)}." if own else "It has none of its own."
    raise InvalidValueError(f"Engine {engine} has no axis {name!r}.", hint=f"{did_you_mean(name, own)}{known}")


def _parsed(axis: Axis, values: Sequence[ParamValue | None]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(axis.parse(UNSET if value is None else setting_text(value)) for value in values))
