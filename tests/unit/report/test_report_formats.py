from __future__ import annotations

import datetime as dt

import pytest

from kvray.report import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0, "0.00"),
        (0.12345, "0.123"),
        (4.567, "4.57"),
        (9.999, "10.0"),
        (78.94, "78.9"),
        (99.96, "100"),
        (1234.5, "1,234"),
        (-3.2, "−3.20"),
    ],
)
def test_a_quantity_has_three_significant_digits(value: float | None, text: str) -> None:
    assert formats.quantity(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0.12, "+12 %"), (11.5, "12.5×"), (-0.9, "1/10")])
def test_a_gain_in_a_table_is_written_as_every_ratio(value: float | None, text: str) -> None:
    assert formats.speed_gain(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "50 %"), (0.9996, "over 99 %"), (1.0, "100 %"), (0.001, "under 1 %"), (None, "–")]
)
def test_a_share_is_never_rounded_to_certainty(value: float | None, text: str) -> None:
    assert formats.share(value) == text


def test_a_break_even_keeps_three_digits() -> None:
    assert [formats.rounded_count(value) for value in (12_437.2, 7.4, 0, None)] == ["12,400", "7", "0", "–"]


def test_a_quality_loss_may_be_tiny() -> None:
    assert [formats.small(value) for value in (0.0, 0.0125, 2.1e-4, -0.02, None)] == [
        "0",
        "0.0125",
        "2.1e−04",
        "−0.02",
        "–",
    ]


def test_times_are_in_utc() -> None:
    east = dt.timezone(dt.timedelta(hours=2))
    assert formats.timestamp(dt.datetime(2026, 11, 24, 23, 30, tzinfo=east)) == "2026-11-24 21:30 UTC"
    assert formats.timestamp(dt.datetime(2026, 11, 24, 21, 30)) == "2026-11-24 21:30 UTC"


def test_lists_read_like_prose() -> None:
    assert [formats.listed(list(names)) for names in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]


def test_cleaning_takes_away_terminal_escapes_and_invisible_characters() -> None:
    dirty = "\x1b[31mred\x1b[0m \x1b]0;title\x07and\r\nplain\x00 \u202eevil\u2066 \x9b"
    assert formats.clean(dirty) == "red and\nplain evil "
    assert formats.clean_line(dirty) == "red and plain evil"


def test_what_is_not_unicode_can_still_be_written() -> None:
    assert formats.clean("models/\udcff") == "models/?"


@pytest.mark.parametrize(
    ("seconds", "text"), [(45, "45 s"), (90, "1.5 min"), (100, "100 s"), (1200, "20 min"), (5400, "1.5 h")]
)
def test_a_duration_is_told_in_the_unit_that_a_person_would_take(seconds: float, text: str) -> None:
    assert formats.duration(seconds) == text
