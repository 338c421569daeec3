"""Axes that a user narrows: the part of a space that has the values asked for, and nothing of them is lost."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvray.space.search_space import Axes

_DTYPE = "dtype"
Values = tuple[Any, ...]


def narrowed(blocks: Sequence[Axes], asked: Mapping[str, Values]) -> tuple[Axes, ...]:
    """The part of `blocks` that has only values of `asked`, by the name of an axis.

    A block is made for some caches or kernels and in whatever dtype is usual, so one that has none of the dtypes asked
    for takes them: `--dtype float32` leaves no cache out. A combination of values that no block has is measured with
    the rest of the first block.
    """
    in_dtype = [_in_dtypes(axes, asked.get(_DTYPE, ())) for axes in blocks]
    kept = [part for axes in in_dtype if (part := _part(axes, asked)) is not None]
    covered = {combination for part in kept for combination in _combinations(part, asked)}
    missing = [one for one in itertools.product(*asked.values()) if one not in covered]
    if len(missing) == len(list(itertools.product(*asked.values()))):
        return (in_dtype[0].having(asked),)
    return (*kept, *(in_dtype[0].having(_singles(asked, one)) for one in missing))


def _in_dtypes(axes: Axes, asked: Values) -> Axes:
    kept = tuple(dtype for dtype in asked if dtype in axes.dtypes)
    return replace(axes, dtypes=kept or asked or axes.dtypes)


def _part(axes: Axes, asked: Mapping[str, Values]) -> Axes | None:
    """`axes` without what is not asked for, in the order asked for; `None` if nothing of an axis is left."""
    kept = {axis: tuple(value for value in values if value in axes.values_of(axis)) for axis, values in asked.items()}
    return axes.having(kept) if all(kept.values()) else None


def _combinations(axes: Axes, asked: Mapping[str, Values]) -> Iterator[Values]:
    return itertools.product(*(axes.values_of(axis) for axis in asked))


def _singles(asked: Mapping[str, Values], values: Values) -> dict[str, Values]:
    return {axis: (value,) for axis, value in zip(asked, values, strict=True)}
