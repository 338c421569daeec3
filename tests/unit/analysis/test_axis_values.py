"""Which axes of a space are numbers, and where its candidates lie on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from search_samples import SPACE

from kvray.analysis.axis_values import NumberAxis, axis_points, number_axes
from kvray.candidate import CacheChoice, Candidate, ParamValue
from kvray.space.axis import Axis, AxisKind, Scale

BASE = SPACE[0]


def with_caches(*texts: str) -> list[Candidate]:
    choices = [CacheChoice.parse(text) for text in texts]
    return [replace(BASE, cache=one.strategy, cache_params=one.params) for one in choices]


def with_tiles(*values: ParamValue | None) -> list[Candidate]:
    return [replace(BASE, settings=() if value is None else (("tile", value),)) for value in values]


def only(axes: Sequence[NumberAxis]) -> NumberAxis:
    (axis,) = axes
    return axis


def test_a_field_of_whole_numbers_is_an_axis_by_their_ratios() -> None:
    axis = only(number_axes([replace(BASE, batch_size=size) for size in (1, 2, 8, 16)]))
    assert axis.name == "batch_size"
    assert axis.positions.tolist() == pytest.approx([0, 0.25, 0.75, 1])


@pytest.mark.parametrize("values", [(4, 4, 4, 4), (4, 8, 16), (True, False, 1, 2)])
def test_fewer_than_four_numbers_are_names(values: tuple[ParamValue, ...]) -> None:
    assert number_axes(with_tiles(*values)) == []


def test_names_are_no_numbers() -> None:
    assert number_axes(SPACE) == []
    assert number_axes(with_tiles("4", "8", "16", "32")) == []


def test_no_limit_is_near_to_itself_alone() -> None:
    chunks = (None, 64, 128, 256, 512, None)
    distances = only(number_axes([replace(BASE, prefill_chunk=chunk) for chunk in chunks])).distances
    assert distances[0, 5] == 0
    assert distances[0, 1:5].min() > 1000
    assert distances[1, 2] == pytest.approx(1 / 3)
    assert (distances == distances.T).all()


def test_a_parameter_of_one_cache_is_an_axis_that_others_are_not_on() -> None:
    windows = [f"sliding_window(window={window})" for window in (128, 256, 1024, 2048)]
    axis = only(number_axes(with_caches("dynamic", "static", *windows)))
    assert axis.name == "cache.window"
    assert np.isnan(axis.positions).tolist() == [True, True, False, False, False, False]
    assert axis.positions[2:].tolist() == pytest.approx([0, 0.25, 0.75, 1])


def test_an_engine_says_whether_its_setting_is_a_number_and_on_which_scale() -> None:
    space = with_tiles(1, 10, 100, 1000)
    number = Axis(name="tile", title="tile", kind=AxisKind.NUMBER, scale=Scale.LINEAR)
    assert only(number_axes(space, [number])).positions.tolist() == pytest.approx([0, 9 / 999, 99 / 999, 1])
    assert only(number_axes(space)).positions.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert number_axes(space, [Axis(name="tile", title="tile", kind=AxisKind.CHOICE)]) == []


def test_a_number_that_may_be_nought_is_placed_by_differences() -> None:
    log = Axis(name="tile", title="tile", kind=AxisKind.NUMBER, scale=Scale.LOG, least=0)
    assert only(number_axes(with_tiles(0, 1, 2, 4), [log])).positions.tolist() == pytest.approx([0, 0.25, 0.5, 1])


def test_settings_and_engines_are_axes_of_names_where_there_are_any() -> None:
    assert len(set(axis_points(with_tiles(None, 1, "rows")))) == 3
    other = replace(BASE, engine="other")
    assert axis_points([BASE, other])[0] != axis_points([BASE, other])[1]
    assert len(axis_points([BASE])[0]) == len(axis_points([BASE, other])[0]) - 1
