"""How a comparison reads: a change of less than half in per cent, a larger one as a multiple, in both directions.

A `factor` is how many times the other's value this one is; for speeds, how many times as fast. Per cents alone mislead:
"99 % slower" may be 100 or 155 times as long. A share is a multiple, too (`0.59×`, never `1/1.7`); only from a tenth
down it is a fraction with a whole number (`1/12`), because two decimals say too little there.
"""

from __future__ import annotations

import math

SAME_WITHIN = 0.005
"""Changes below half a per cent are shown as none."""
_TIMES_FROM = 1.5
"""What takes half as long again, and more, is a multiple."""
LEAST_SHARE = 0.5
"""Amounts become less in per cent down to this share of them: `40 % less` is what people say."""
_FRACTION_FROM = 9.95
"""How many times less is told as a fraction."""
_LEAST_MULTIPLE = 0.01
"""Below it two decimals say nothing, also in an interval whose other end is a multiple."""
_NO_DIFFERENCE = 1e-6
"""Ends of an interval as near to 1 as this are on neither side of it."""
MISSING = "–"


def speed_text(factor: float) -> str:
    """`2.65× as fast`, `12 % faster`, `as fast`, `3 % slower`, `155× as long`."""
    if _is_same(factor):
        return "as fast"
    if factor >= _TIMES_FROM:
        return f"{multiple(factor)} as fast"
    if factor <= 1 / _TIMES_FROM:
        return f"{multiple(1 / factor)} as long"
    return f"{_percent(factor)} {'faster' if factor > 1 else 'slower'}"


def speed_sign(factor: float | None) -> str:
    """The same for a table: `2.65×`, `+12 %`, `±0 %`, `−3 %`, `0.62×`, `1/155`."""
    return _sign(factor, least=1 / _TIMES_FROM)


def interval_text(low: float, high: float) -> str:
    """From `low` to `high`, both written in one way: `2.20× to 3.20×`, `−3 % to +21 %`, `1/170 to 1/140`, `0.53× to
    0.97×`. Beside a multiple only a hundredth and less stays a fraction: `1/170 to 0.97×`. An end near 1 has the digits
    that tell on which side it is: `0.53× to 0.999×`, `−7 % to −0.2 %`."""
    if low > 1 / _TIMES_FROM and high < _TIMES_FROM:
        return _percent_interval(low, high)
    if 1 / high >= _FRACTION_FROM:
        return f"{_share(low)} to {_share(high)}"
    least = _near_multiple(low) if low > _LEAST_MULTIPLE else _share(low)
    return f"{least} to {_near_multiple(high)}"


def speed_sign_interval_text(factor: float, low: float, high: float) -> str:
    """The interval of a speed that is told as `speed_sign(factor)`, in the same unit."""
    return _interval_beside(factor, low, high, least=1 / _TIMES_FROM)


def amount_interval_text(factor: float, low: float, high: float) -> str:
    """The same beside `amount_sign(factor)`, `tok_s_text(factor)` or `memory_text(factor)`, which tell in per cent what
    is down to half: `−47 % to −37 %`."""
    return _interval_beside(factor, low, high, least=LEAST_SHARE)


def speed_interval_text(factor: float, low: float, high: float) -> str:
    """The same beside `speed_text(factor)`. `2.88× as long` speaks of the time, so its interval does, too: `2.70× to
    3.10×`."""
    if factor <= 1 / _TIMES_FROM:
        return interval_text(1 / high, 1 / low)
    return speed_sign_interval_text(factor, low, high)


def first_token_interval_text(factor: float, ends: tuple[float, float]) -> str:
    """The `ends` of a gain as they are told away from its value: `2.70× to 3.10× as long`, `2.20× to 3.20× as fast`,
    `−16 % to +45 %`. They speak of what `first_token_text` does."""
    if _is_within(ends):
        return _noise_text(ends)
    unit = " as long" if factor <= 1 / _TIMES_FROM else " as fast" if factor >= _TIMES_FROM else ""
    return f"{speed_interval_text(factor, *ends)}{unit}"


def tok_s_interval_text(factor: float, ends: tuple[float, float]) -> str:
    """The same of tok/s, beside `throughput_text`."""
    return _noise_text(ends) if _is_within(ends) else amount_interval_text(factor, *ends)


def first_token_text(factor: float, ends: tuple[float, float] | None, *, with_interval: bool = True) -> str:
    """`first token 2.65× as fast (95 %: 2.20× to 3.20×)`. A gain that may as well be none, because 1 lies between the
    `ends` of its 95 % interval, is `first token as fast within noise (−16 % to +45 %)`."""
    if ends and _is_within(ends):
        return f"first token as fast within noise ({_noise_text(ends)})"
    interval = speed_interval_text(factor, *ends) if ends and with_interval else ""
    return _with_interval(f"first token {speed_text(factor)}", interval)


def throughput_text(factor: float, ends: tuple[float, float] | None, *, with_interval: bool = True) -> str:
    """The same of tok/s: `12 % more tok/s (95 %: +9 % to +15 %)`, `the same tok/s within noise (−3 % to +9 %)`."""
    if ends and _is_within(ends):
        return f"the same tok/s within noise ({_noise_text(ends)})"
    interval = amount_interval_text(factor, *ends) if ends and with_interval else ""
    return _with_interval(tok_s_text(factor), interval)


def _noise_text(ends: tuple[float, float]) -> str:
    """Beside what is told as the same."""
    return _interval_beside(1.0, *ends, least=LEAST_SHARE)


def _interval_beside(factor: float, low: float, high: float, *, least: float) -> str:
    """In per cent where a sign that does so down to `least` tells `factor` in per cent."""
    if least < factor < _TIMES_FROM and low > 1 / _FRACTION_FROM:
        return _percent_interval(low, high)
    return interval_text(low, high)


def _percent_interval(low: float, high: float) -> str:
    return f"{_near_percent(low)} to {_near_percent(high)}"


def _near_percent(factor: float) -> str:
    """`−3 %`, `−0.2 %`; `±0 %` only where there is no difference to speak of."""
    if abs(factor - 1) < _NO_DIFFERENCE:
        return "±0 %"
    shown = f"{abs(factor - 1) * 100:.1g} %" if _is_same(factor) else _percent(factor)
    return f"{'+' if factor > 1 else '−'}{shown}"


def _near_multiple(factor: float) -> str:
    """`0.97×`, `0.999×`; `1.00×` only where there is no difference to speak of."""
    if not _is_same(factor) or abs(factor - 1) < _NO_DIFFERENCE:
        return multiple(factor)
    decimals = next(digits for digits in range(2, 9) if round(factor, digits) != 1)
    return f"{factor:.{decimals}f}×"


def _is_within(ends: tuple[float, float]) -> bool:
    return ends[0] <= 1 <= ends[1]


def _with_interval(text: str, interval: str) -> str:
    return f"{text} (95 %: {interval})" if interval else text


def tok_s_text(factor: float) -> str:
    """`1.91× the tok/s`, `12 % more tok/s`, `the same tok/s`, `41 % fewer tok/s`, `0.40× the tok/s`, `1/12 of the
    tok/s`."""
    return _amount_text(factor, "tok/s", less="fewer")


def memory_text(factor: float) -> str:
    """`1.91× the memory`, `12 % more memory`, `the same memory`, `28 % less memory`, `0.40× the memory`, `1/12 of the
    memory`."""
    return _amount_text(factor, "memory", less="less")


def amount_sign(factor: float | None) -> str:
    """The same for a table: `1.91×`, `+12 %`, `±0 %`, `−28 %`, `0.40×`, `1/12`."""
    return _sign(factor, least=LEAST_SHARE)


def leaner_text(factor: float) -> str:
    """For memory that is less: `28 % less memory than`, `0.40× the memory of`."""
    return f"{memory_text(factor)} {'than' if factor > LEAST_SHARE else 'of'}"


def higher_text(factor: float) -> str:
    """For a score that is higher: `12 % higher than`, `1.62× as high as`."""
    return f"{multiple(factor)} as high as" if factor >= _TIMES_FROM else f"{_percent(factor)} higher than"


def limit_text(factor: float) -> str:
    """What goes before "the limit": `28 % over`, `less than 1 % over`, `1.62×`, `25 % under`, `0.34×`, `1/12 of`."""
    if factor >= _TIMES_FROM:
        return multiple(factor)
    if factor <= LEAST_SHARE:
        return _share_of(factor)
    by = "less than 1 %" if abs(factor - 1) < 0.01 else _percent(factor)
    return f"{by} {'over' if factor > 1 else 'under'}"


def multiple(factor: float | None) -> str:
    """`1.92×`, `12.3×`, `155×`, `0.07×`."""
    return MISSING if factor is None or not math.isfinite(factor) else f"{_digits(factor)}×"


def _amount_text(factor: float, noun: str, *, less: str) -> str:
    if _is_same(factor):
        return f"the same {noun}"
    if factor >= _TIMES_FROM:
        return f"{multiple(factor)} the {noun}"
    if factor <= LEAST_SHARE:
        return f"{_share_of(factor)} the {noun}"
    return f"{_percent(factor)} {'more' if factor > 1 else less} {noun}"


def _sign(factor: float | None, *, least: float) -> str:
    if factor is None or not math.isfinite(factor) or factor <= 0:
        return MISSING
    if _is_same(factor):
        return "±0 %"
    if factor >= _TIMES_FROM:
        return multiple(factor)
    if factor <= least:
        return _share(factor)
    return f"{'+' if factor > 1 else '−'}{_percent(factor)}"


def _is_same(factor: float) -> bool:
    return abs(factor - 1) < SAME_WITHIN


def _percent(factor: float) -> str:
    return f"{abs(factor - 1) * 100:.0f} %"


def _digits(factor: float) -> str:
    """At least two digits, at most two decimals: `0.07`, `2.65`, `12.3`, `1,234`."""
    return f"{factor:,.0f}" if factor >= 99.95 else f"{factor:.1f}" if factor >= 9.995 else f"{factor:.2f}"


def _share(factor: float) -> str:
    """`0.59×`, `1/12`, `1/1,550`."""
    return f"1/{1 / factor:,.0f}" if 1 / factor >= _FRACTION_FROM else multiple(factor)


def _share_of(factor: float) -> str:
    """The same before what it is a share of: `0.59×`, `1/12 of`."""
    share = _share(factor)
    return share if share.endswith("×") else f"{share} of"
