"""How numbers and outside strings look in every report: one place, independent of the locale.

Thousands are set off by commas, decimals by a point, a missing value is an en dash, a minus is a real minus sign.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from kvray.ratios import MISSING, amount_sign, multiple, speed_sign

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def quantity(value: float | None) -> str:
    """Three significant digits, whole from 100 on: `0.123`, `4.56`, `78.9`, `1,234`."""
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value)
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 or size == 0 else 3
    return _signed(f"{value:,.{digits}f}")


def count(value: int | None) -> str:
    """A whole number: `12,400`."""
    return MISSING if value is None else _signed(f"{value:,}")


def rounded_count(value: float | None) -> str:
    """A whole number of which only the first three digits mean something: `12,437` becomes `12,400`."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    step = 10 ** max(0, math.floor(math.log10(abs(value))) - 2)
    return count(round(value / step) * step)


def duration(seconds: float) -> str:
    """A time that a person set: `90 s`, `20 min`, `1.5 h`."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size and (seconds / size * 10).is_integer():
            return f"{seconds / size:g} {unit}"
    return f"{seconds:,g} s"


def duration_range(low_s: float, high_s: float) -> str:
    """A rough time that a person waits: `about 20 s`, `about 3 min`, `about 3 to 9 min`, `about 1 to 2.5 h`."""
    unit, length = ("h", 3600.0) if high_s >= 5400 else ("min", 60.0) if high_s >= 90 else ("s", 1.0)
    low, high = _rough(low_s / length, unit), _rough(high_s / length, unit)
    return f"about {high} {unit}" if low in (high, "0") else f"about {low} to {high} {unit}"


def _rough(value: float, unit: str) -> str:
    if unit == "s":
        return f"{max(5, round(value / 5) * 5)}"
    return f"{round(value * 2) / 2:g}" if unit == "h" and value < 10 else f"{max(1, round(value))}"


def share(value: float | None) -> str:
    """A share of 0 to 1 as whole per cent; never rounded up to certainty or down to nothing."""
    if value is None:
        return MISSING
    if 0.995 <= value < 1:
        return "over 99 %"
    if 0 < value < 0.005:
        return "under 1 %"
    return f"{value * 100:.0f} %"


def speed_gain(value: float | None) -> str:
    """A relative gain in speed for a table, as `ratios` writes it: `2.65×`, `+12 %`, `±0 %`, `−3 %`, `1/155`."""
    return speed_sign(None if value is None else 1 + value)


def small(value: float | None) -> str:
    """A number that may be tiny or negative, as a quality loss is: `0`, `0.0125`, `2.1e−04`."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return _signed(f"{value:.3g}")
    return _signed(f"{value:.1e}")


def bounded(low: float | None, high: float | None) -> str:
    """A small number that is exact where there is no `high`, else `0.0125 to 0.3`."""
    return small(low) if high is None else f"{small(low)} to {small(high)}"


def precise_share(value: float | None) -> str:
    """A share with one decimal: `99.8 %`."""
    return MISSING if value is None else f"{value * 100:.1f} %"


def score(value: float) -> str:
    """A score of 0 to 100: `98.7`."""
    return f"{value:.1f}"


def timestamp(value: dt.datetime) -> str:
    """Minutes in UTC; a time without a zone is taken to be UTC already."""
    moment = value if value.tzinfo is None else value.astimezone(dt.UTC)
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """`1 run`, `2 runs`, `1,200 processes`."""
    return f"{count(number)} {noun if number == 1 else nouns or noun + 's'}"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def clean(text: str) -> str:
    """`text` from outside without terminal escapes and invisible characters that could reorder or hide what is read.

    What is not valid Unicode (bytes of an odd file name) becomes question marks, so that it can be written.
    """
    text = text.encode(errors="replace").decode()
    return _INVISIBLE.sub("", _ANSI.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


@lru_cache(maxsize=2**15)
def clean_line(text: str) -> str:
    """`clean` text on one line. Remembered: a label stands in many tables."""
    return " ".join(clean(text).split())


FILTERS: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        *(quantity, count, rounded_count, share, precise_share, small, bounded, score),
        *(speed_gain, speed_sign, amount_sign, multiple),
    )
}
"""What templates may call, by name."""


def _signed(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
