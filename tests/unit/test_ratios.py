from __future__ import annotations

import math
import re
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvray import ratios

SPEEDS = [
    (155.0, "155× as fast", "155×"),
    (12.34, "12.3× as fast", "12.3×"),
    (2.654, "2.65× as fast", "2.65×"),
    (1.5, "1.50× as fast", "1.50×"),
    (1.49, "49 % faster", "+49 %"),
    (1.12, "12 % faster", "+12 %"),
    (1.004, "as fast", "±0 %"),
    (0.97, "3 % slower", "−3 %"),
    (0.7, "30 % slower", "−30 %"),
    (1 / 1.6, "1.60× as long", "0.62×"),
    (1 / 155, "155× as long", "1/155"),
    (1 / 1550, "1,550× as long", "1/1,550"),
]


@pytest.mark.parametrize(("factor", "text", "sign"), SPEEDS)
def test_a_speed_is_told_in_per_cent_or_as_a_multiple_in_both_directions(factor: float, text: str, sign: str) -> None:
    assert (ratios.speed_text(factor), ratios.speed_sign(factor)) == (text, sign)


@pytest.mark.parametrize(
    ("factor", "text"),
    [
        (1.908, "1.91× the tok/s"),
        (1.12, "12 % more tok/s"),
        (1.0, "the same tok/s"),
        (0.97, "3 % fewer tok/s"),
        (1 / 1.7, "41 % fewer tok/s"),
        (0.4, "0.40× the tok/s"),
        (1 / 9, "0.11× the tok/s"),
        (1 / 12, "1/12 of the tok/s"),
    ],
)
def test_tokens_per_second_are_counted(factor: float, text: str) -> None:
    assert ratios.tok_s_text(factor) == text


@pytest.mark.parametrize(
    ("factor", "text", "sign"),
    [
        (1.9, "1.90× the memory", "1.90×"),
        (1.4, "40 % more memory", "+40 %"),
        (0.999, "the same memory", "±0 %"),
        (0.72, "28 % less memory", "−28 %"),
        (0.55, "45 % less memory", "−45 %"),
        (0.4, "0.40× the memory", "0.40×"),
        (1 / 12, "1/12 of the memory", "1/12"),
    ],
)
def test_memory_is_more_or_less(factor: float, text: str, sign: str) -> None:
    assert (ratios.memory_text(factor), ratios.amount_sign(factor)) == (text, sign)


def test_phrases_for_what_is_leaner_higher_or_beyond_a_limit() -> None:
    assert [ratios.leaner_text(factor) for factor in (0.72, 0.4)] == ["28 % less memory than", "0.40× the memory of"]
    assert [ratios.higher_text(factor) for factor in (1.12, 1.62)] == ["12 % higher than", "1.62× as high as"]
    assert [ratios.limit_text(factor) for factor in (1.62, 1.28, 1.001, 0.75, 1 / 2.9, 1 / 12)] == [
        "1.62×",
        "28 % over",
        "less than 1 % over",
        "25 % under",
        "0.34×",
        "1/12 of",
    ]


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.97, 1.21, "−3 % to +21 %"),
        (0.998, 1.002, "−0.2 % to +0.2 %"),
        (0.93, 0.9996, "−7 % to −0.04 %"),
        (1.0, 1.0, "±0 % to ±0 %"),
        (1.2, 3.2, "1.20× to 3.20×"),
        (2.2, 3.2, "2.20× to 3.20×"),
        (0.3, 3.2, "0.30× to 3.20×"),
        (0.53, 0.97, "0.53× to 0.97×"),
        (0.53, 0.999, "0.53× to 0.999×"),
        (0.53, 0.99996, "0.53× to 0.99996×"),
        (0.53, 1.0, "0.53× to 1.00×"),
        (1.001, 1.9, "1.001× to 1.90×"),
        (1 / 170, 0.97, "1/170 to 0.97×"),
        (1 / 170, 1 / 140, "1/170 to 1/140"),
        (0.4, 0.6, "0.40× to 0.60×"),
        (1 / 15, 1 / 9, "0.07× to 0.11×"),
        (1 / 15, 1 / 12, "1/15 to 1/12"),
    ],
)
def test_both_ends_of_an_interval_are_written_in_one_way(low: float, high: float, text: str) -> None:
    assert ratios.interval_text(low, high) == text


@pytest.mark.parametrize(
    ("factor", "low", "high", "text"),
    [
        (1 / 2.88, 1 / 3.1, 1 / 2.7, "2.88× as long (2.70× to 3.10×)"),
        (0.66, 0.5, 0.9, "1.52× as long (1.11× to 2.00×)"),
        (0.69, 0.53, 0.97, "31 % slower (−47 % to −3 %)"),
        (1.45, 1.002, 2.1, "45 % faster (+0.2 % to +110 %)"),
        (1 / 3.44, 0.23, 0.37, "3.44× as long (2.70× to 4.35×)"),
        (0.9, 0.01, 81.0, "10 % slower (1/100 to 81.0×)"),
        (0.95, 0.93, 0.97, "5 % slower (−7 % to −3 %)"),
        (2.0, 1.9, 2.1, "2.00× as fast (1.90× to 2.10×)"),
    ],
)
def test_an_interval_speaks_of_what_its_text_speaks_of(factor: float, low: float, high: float, text: str) -> None:
    assert f"{ratios.speed_text(factor)} ({ratios.speed_interval_text(factor, low, high)})" == text


@pytest.mark.parametrize(
    ("factor", "ends", "first_token", "tok_s"),
    [
        (1 / 3.44, (0.23, 0.37), "2.70× to 4.35× as long", "0.23× to 0.37×"),
        (2.0, (1.8, 2.2), "1.80× to 2.20× as fast", "1.80× to 2.20×"),
        (0.6, (0.48, 0.75), "1.33× to 2.08× as long", "−52 % to −25 %"),
        (1.12, (1.05, 1.2), "+5 % to +20 %", "+5 % to +20 %"),
        (1.6, (0.9, 2.8), "−10 % to +180 %", "−10 % to +180 %"),
    ],
)
def test_an_interval_away_from_its_value_has_the_values_direction_and_unit(
    factor: float, ends: tuple[float, float], first_token: str, tok_s: str
) -> None:
    assert ratios.first_token_interval_text(factor, ends) == first_token
    assert ratios.tok_s_interval_text(factor, ends) == tok_s


@pytest.mark.parametrize(
    ("factor", "low", "high", "text"),
    [
        (0.62, 0.5, 0.77, "0.62× (0.50× to 0.77×)"),
        (0.7, 0.5, 0.97, "−30 % (−50 % to −3 %)"),
        (2.65, 2.2, 3.2, "2.65× (2.20× to 3.20×)"),
    ],
)
def test_an_interval_in_a_table_has_the_unit_of_its_sign(factor: float, low: float, high: float, text: str) -> None:
    assert f"{ratios.speed_sign(factor)} ({ratios.speed_sign_interval_text(factor, low, high)})" == text


@given(st.floats(0.01, 100.0), st.floats(1e-5, 3.0))
def test_an_interval_on_one_side_of_one_does_not_read_as_if_it_touched_it(end: float, distance: float) -> None:
    for text in (ratios.interval_text(1 + distance, 2 + distance), ratios.interval_text(end / 200, 1 / (1 + distance))):
        assert not re.search(r"±0 %|\b1\.00×", text), text


@pytest.mark.parametrize("factor", [None, math.nan, math.inf, 0.0, -1.0])
def test_what_cannot_be_compared_is_a_dash(factor: float | None) -> None:
    assert ratios.speed_sign(factor) == ratios.amount_sign(factor) == "–"


@pytest.mark.parametrize(
    ("factor", "ends", "told"),
    [
        (2.0, (1.8, 2.2), "first token 2.00× as fast (95 %: 1.80× to 2.20×)"),
        (1 / 2.88, (1 / 3.1, 1 / 2.7), "first token 2.88× as long (95 %: 2.70× to 3.10×)"),
        (1.1, (0.84, 1.45), "first token as fast within noise (−16 % to +45 %)"),
        (1.1, None, "first token 10 % faster"),
    ],
)
def test_the_interval_of_a_gain_speaks_of_what_its_words_do(
    factor: float, ends: tuple[float, float] | None, told: str
) -> None:
    assert ratios.first_token_text(factor, ends) == told
    assert ratios.throughput_text(1.12, (1.09, 1.15), with_interval=False) == "12 % more tok/s"


@pytest.mark.parametrize(
    ("factor", "ends", "told"),
    [
        (0.6, (0.55, 0.65), "40 % fewer tok/s (95 %: −45 % to −35 %)"),
        (0.4, (0.35, 0.45), "0.40× the tok/s (95 %: 0.35× to 0.45×)"),
        (0.8, (0.6, 1.05), "the same tok/s within noise (−40 % to +5 %)"),
    ],
)
def test_the_interval_of_tokens_per_second_is_told_as_they_are(
    factor: float, ends: tuple[float, float], told: str
) -> None:
    assert ratios.throughput_text(factor, ends) == told


@given(st.floats(1e-4, 1e4), st.floats(1.0, 10.0))
def test_no_fraction_has_a_decimal(low: float, width: float) -> None:
    high = low * width
    texts = (
        *(tell(low) for tell in (ratios.tok_s_text, ratios.memory_text, ratios.limit_text, ratios.leaner_text)),
        *(tell(low) for tell in (ratios.speed_text, ratios.speed_sign, ratios.amount_sign)),
        *(tell(low, high) for tell in (ratios.interval_text, partial(ratios.amount_interval_text, low))),
    )
    assert not [text for text in texts if re.search(r"1/[\d,]+\.\d", text)]
