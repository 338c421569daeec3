"""`--margin`: what is a margin, and what one line says of nonsense."""

from __future__ import annotations

import pytest

from kvray.analysis.comparison import ComparedMetric
from kvray.cli.verdict_options import given_margins, parse_margins
from kvray.errors import InvalidValueError

DEFAULT = {ComparedMetric.TTFT: 0.05, ComparedMetric.MEMORY: 0.02}


@pytest.mark.parametrize(
    ("text", "margins"),
    [
        (None, DEFAULT),
        ("ttft=10%", {**DEFAULT, ComparedMetric.TTFT: 0.1}),
        ("decode = 2.5 % , memory=0.01", {**DEFAULT, ComparedMetric.DECODE: 0.025, ComparedMetric.MEMORY: 0.01}),
        ("memory=off", {ComparedMetric.TTFT: 0.05}),
    ],
)
def test_what_is_not_named_keeps_its_margin(text: str | None, margins: dict[ComparedMetric, float]) -> None:
    assert parse_margins(text, otherwise=DEFAULT) == margins


@pytest.mark.parametrize(
    "text",
    ["", "5%", "ttft", "ttft=", "ttft=5", "ttft=-5%", "ttft=0%", "ttft=95%", "ttft=nan", "ttft=1e9%", "ttft=5%,ttft=6%",
     "speed=5%", "ttft=5%,", "ttft=off,decode=off,memory=off", "ttft=٥%"],
)  # fmt: skip
def test_nonsense_is_answered_with_one_line(text: str) -> None:
    with pytest.raises(InvalidValueError, match="--margin") as raised:
        given_margins(text)
    assert "\n" not in str(raised.value)


def test_nothing_left_to_judge_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="leaves nothing to judge"):
        parse_margins("ttft=off,memory=off", otherwise=DEFAULT)
    with pytest.raises(InvalidValueError, match="Did you mean 'decode'"):
        given_margins("decod=5%")
