"""What candidates have on every axis: names, and places on axes of numbers (a window of 1024 is between 512 and 2048).

Which axes are numbers is read from the axes that an engine declares, else from the values; no name is known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from kvray.candidate import AttentionChoice, Candidate
from kvray.space.axis import Axis, AxisKind, Scale

Array = npt.NDArray[np.float64]
LEAST_NUMBERS = 4
"""Measuring fewer numbers costs little and their order tells little (`benchmarks/search_cost.py`: 400 candidates
with three took no fewer launches by order than by name)."""
_APART = 1e6
"""Distance between values that have nothing in common, in ranges of the axis: no correlation is left."""


@dataclass(frozen=True, kw_only=True)
class NumberAxis:
    """An axis of numbers.

    Attributes:
        positions: n places from 0 (least number) to 1 (largest); `nan` where a candidate has no number.
    """

    name: str
    positions: Array

    @property
    def distances(self) -> Array:
        """n × n. Candidates without a number are equal to each other and far from all numbers.

        What stands in place of a number is the engine's to know: "all", "no limit", its own choice, or a parameter that
        this cache does not have. So it is a value by itself.
        """
        without = np.isnan(self.positions)
        places = np.where(without, 0.0, self.positions)
        return np.where(without[:, None] == without, np.abs(places[:, None] - places), _APART)


def number_axes(candidates: Sequence[Candidate], declared: Iterable[Axis] = ()) -> list[NumberAxis]:
    """The axes on which `candidates` have at least four different numbers.

    What is `declared` counts as what it is declared to be. Any other field, cache parameter or setting is an axis of
    numbers if it has numbers, on a logarithmic scale if all are positive.
    """
    by_name = {axis.name: axis for axis in declared}
    found = [_number_axis(name, values, by_name.get(name)) for name, values in _columns(candidates).items()]
    return [axis for axis in found if axis is not None]


def axis_points(candidates: Sequence[Candidate]) -> list[tuple[str, ...]]:
    """What each candidate has on every axis, as names.

    A cache is one name by its strategy and another with its parameters: variants of one strategy are related. The
    engine is an axis only where there are several.
    """
    settings = [dict(candidate.settings) for candidate in candidates]
    names = sorted({name for one in settings for name in one})
    several = len({candidate.engine for candidate in candidates}) > 1
    return [
        (*_shared_names(one), *(str(own.get(name)) for name in names), *((one.engine,) if several else ()))
        for one, own in zip(candidates, settings, strict=True)
    ]


def _shared_names(candidate: Candidate) -> tuple[str, ...]:
    return (
        candidate.cache.value,
        str(candidate.cache_choice),
        str(AttentionChoice(candidate.attention, candidate.hub_kernel)),
        candidate.dtype.value,
        candidate.compile.value,
        str(candidate.batch_size),
        str(candidate.parallelism),
        str(candidate.prefill_chunk),
        str(candidate.weights_limit_mib),
    )


def _columns(candidates: Sequence[Candidate]) -> Mapping[str, list[object]]:
    """Per name, what each candidate has there: fields, settings, and parameters of its cache."""
    columns: dict[str, list[object]] = {
        field.name: [getattr(candidate, field.name) for candidate in candidates] for field in fields(Candidate)
    }
    for prefix, pairs in (
        ("", [dict(candidate.settings) for candidate in candidates]),
        ("cache.", [dict(candidate.cache_params) for candidate in candidates]),
    ):
        for name in sorted({name for one in pairs for name in one}):
            columns[prefix + name] = [one.get(name) for one in pairs]
    return columns


def _number_axis(name: str, values: Sequence[object], declared: Axis | None) -> NumberAxis | None:
    if declared is not None and declared.kind is not AxisKind.NUMBER:
        return None
    numbers = np.array([_number(value) for value in values])
    known = np.unique(numbers[~np.isnan(numbers)])
    if len(known) < LEAST_NUMBERS:
        return None
    scale = Scale.LOG if declared is None else declared.scale
    places = np.log(numbers) if scale is Scale.LOG and known[0] > 0 else numbers
    least, largest = np.nanmin(places), np.nanmax(places)
    return NumberAxis(name=name, positions=(places - least) / (largest - least))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else np.nan
