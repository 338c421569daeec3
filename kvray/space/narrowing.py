"""Axes that a user narrows: the part of a space that has the values asked for, and nothing of them is lost."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvray.candidate import SPLIT, ParallelChoice
from kvray.space.search_space import SpaceBlock

_DTYPE = "dtype"
Values = tuple[Any, ...]


def narrowed(blocks: Sequence[SpaceBlock], asked: Mapping[str, Values]) -> tuple[SpaceBlock, ...]:
    """The part of `blocks` that has only values of `asked`, by the name of an axis.

    A block is made for some caches or kernels and in whatever dtype is usual, so one that has none of the dtypes asked
    for takes them: `--dtype float32` leaves no cache out. A combination of values that no block has is measured with
    the rest of the first block.
    """
    in_dtype = [_in_dtypes(block, asked.get(_DTYPE, ())) for block in blocks]
    kept = [part for block in in_dtype if (part := _part(block, asked)) is not None]
    covered = {combination for part in kept for combination in _combinations(part, asked)}
    missing = [one for one in itertools.product(*asked.values()) if one not in covered]
    if len(missing) == len(list(itertools.product(*asked.values()))):
        return (in_dtype[0].having(asked),)
    return (*kept, *(in_dtype[0].having(_singles(asked, one)) for one in missing))


def spread(blocks: Sequence[SpaceBlock], choices: Sequence[ParallelChoice]) -> tuple[SpaceBlock, ...]:
    """`blocks` with every one of `choices` in place of what they say of GPUs."""
    found: list[SpaceBlock] = []
    for choice in choices:
        way = {SPLIT: (choice.split,)} if choice.split is not None else {}
        for block in blocks:
            own = {name: values for name, values in block.settings.items() if name != SPLIT}
            one = replace(block, parallelisms=(choice.gpus,), settings={**own, **way})
            if one not in found:
                found.append(one)
    return tuple(found)


def _in_dtypes(block: SpaceBlock, asked: Values) -> SpaceBlock:
    kept = tuple(dtype for dtype in asked if dtype in block.dtypes)
    return replace(block, dtypes=kept or asked or block.dtypes)


def _part(block: SpaceBlock, asked: Mapping[str, Values]) -> SpaceBlock | None:
    """`block` without what is not asked for, in the order asked for; `None` if nothing of an axis is left."""
    kept = {axis: tuple(value for value in values if value in block.values_of(axis)) for axis, values in asked.items()}
    return block.having(kept) if all(kept.values()) else None


def _combinations(block: SpaceBlock, asked: Mapping[str, Values]) -> Iterator[Values]:
    return itertools.product(*(block.values_of(axis) for axis in asked))


def _singles(asked: Mapping[str, Values], values: Values) -> dict[str, Values]:
    return {axis: (value,) for axis, value in zip(asked, values, strict=True)}
