"""What an axis takes for a value, and what it says of anything else."""

from __future__ import annotations

from typing import Any

import pytest

from kvray.errors import InvalidValueError
from kvray.space.axis import Axis, AxisKind, AxisValue, Scale

TILE = Axis(
    name="tile", title="tile size", kind=AxisKind.NUMBER, scale=Scale.LOG, most=4096, aliases={"auto": None, "small": 8}
)
SHARE = Axis(name="share", title="share", kind=AxisKind.NUMBER, scale=Scale.LINEAR, whole=False, least=0, most=1)
FUSED = Axis(name="fused", title="fused kernel", kind=AxisKind.FLAG)
LAYOUT = Axis(
    name="layout",
    title="memory layout",
    kind=AxisKind.CHOICE,
    values=(AxisValue(value="rows"), AxisValue(value="columns")),
)


@pytest.mark.parametrize(
    ("axis", "text", "value"),
    [
        (TILE, "16", 16),
        (TILE, " 4096 ", 4096),
        (TILE, "none", None),
        (TILE, "auto", None),
        (TILE, "Small", 8),
        (SHARE, "0.5", 0.5),
        (SHARE, "1", 1.0),
        (FUSED, "true", True),
        (FUSED, "false", False),
        (LAYOUT, "rows", "rows"),
        (LAYOUT, "None", None),
    ],
)
def test_a_value_is_read_by_the_kind_of_its_axis(axis: Axis, text: str, value: Any) -> None:
    parsed = axis.parse(text)
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(
    ("axis", "text", "complaint"),
    [
        (TILE, "0", r"tile size '0' is neither a whole number from 1 to 4096 nor auto nor small nor none"),
        (TILE, "4097", "from 1 to 4096"),
        (TILE, "1.5", "neither a whole number"),
        (TILE, "9" * 30, "neither a whole number"),
        (TILE, "-4", "neither a whole number"),
        (TILE, "٣", "neither a whole number"),
        (SHARE, "nan", "neither a number from 0 to 1 nor none"),
        (SHARE, "2", "neither a number from 0 to 1"),
        (FUSED, "yes", r"Unknown fused kernel 'yes'\. Allowed: true, false, none"),
        (FUSED, "ture", "Did you mean 'true'"),
        (FUSED, "no", r"^Axis fused: Unknown fused kernel 'no'\. Allowed: "),
        (TILE, "0", "^Axis tile: tile size '0'"),
        (LAYOUT, "non", "Did you mean 'none'"),
        (LAYOUT, "colums", r"Unknown memory layout 'colums'\. Did you mean 'columns'\?"),
        (LAYOUT, "", "Allowed: rows, columns, none"),
    ],
)
def test_a_value_that_an_axis_does_not_have_is_refused_with_what_it_has(axis: Axis, text: str, complaint: str) -> None:
    with pytest.raises(InvalidValueError, match=complaint):
        axis.parse(text)


def test_only_a_number_axis_has_a_scale() -> None:
    with pytest.raises(InvalidValueError, match="number axis"):
        Axis(name="tile", title="tile size", kind=AxisKind.NUMBER)
    with pytest.raises(InvalidValueError, match="flag axis"):
        Axis(name="fused", title="fused", kind=AxisKind.FLAG, scale=Scale.LOG)


def test_the_name_of_an_axis_can_name_a_setting() -> None:
    with pytest.raises(InvalidValueError, match="is not a name of letters"):
        Axis(name="tile-size", title="tile size", kind=AxisKind.FLAG)
