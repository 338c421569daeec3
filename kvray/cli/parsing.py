"""Values of options: comma-separated lists and axis values, with errors that say what is allowed."""

from __future__ import annotations

import contextlib
import math
import re
from typing import TypeVar

from kvray.candidate import MOST_DIGITS, AttentionBackend, AttentionChoice, CacheChoice, CacheStrategy, Choice
from kvray.errors import InvalidValueError
from kvray.record import TrialStatus

C = TypeVar("C", bound=Choice)
OFF = "off"
"""Lifts a limit."""
_MIB_PER_UNIT = {"": 1.0, "mib": 1.0, "gib": 1024.0, "mb": 1e6 / 2**20, "gb": 1e9 / 2**20}
_SIZE = re.compile(r"(?P<number>\d+(\.\d*)?|\.\d+)\s*(?P<unit>mib|gib|mb|gb|)", re.ASCII)


_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str | None, *, option: str) -> float | None:
    """`"90s"`, `"20m"` or `"1.5h"` as seconds.

    Raises:
        InvalidValueError: it is not of that form, or not positive.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip().lower(), flags=re.ASCII)
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0 < seconds < math.inf:
        raise InvalidValueError(
            f"{option} {text!r} is not a time above 0 with its unit.", hint="Write it like 90s, 20m or 1.5h."
        )
    return seconds


def parse_choices(text: str | None, kind: type[C]) -> tuple[C, ...]:
    """`"dynamic,static"` as members of `kind`; empty for `None`.

    Raises:
        InvalidValueError: a part is not a member, or there is none.
    """
    parts = _parts(text)
    if text is not None and not parts:
        raise InvalidValueError.not_one_of(kind.axis_name(), text, list(kind))
    return tuple(dict.fromkeys(kind.parse(part) for part in parts))


def parse_caches(text: str | None) -> tuple[CacheChoice, ...]:
    """`"static,quantized(backend=hqq,nbits=4)"` as choices: commas in parentheses belong to the settings.

    Raises:
        InvalidValueError: a part is not a cache, or there is none.
    """
    parts = [part.strip() for part in re.split(r",(?![^(]*\))", text or "") if part.strip()]
    if text is not None and not parts:
        raise InvalidValueError.not_one_of(CacheStrategy.axis_name(), text, list(CacheStrategy))
    return tuple(dict.fromkeys(CacheChoice.parse(part) for part in parts))


def parse_attentions(text: str | None) -> tuple[AttentionChoice, ...]:
    """`"sdpa,kernels-community/flash-attn2"` as choices; empty for `None`.

    Raises:
        InvalidValueError: a part is neither a backend nor a kernel's name, or there is none.
    """
    parts = _parts(text)
    if text is not None and not parts:
        raise InvalidValueError.not_one_of(AttentionBackend.axis_name(), text, list(AttentionBackend))
    return tuple(dict.fromkeys(AttentionChoice.parse(part) for part in parts))


def parse_optional_integers(text: str | None, *, option: str) -> tuple[int | None, ...]:
    """`"none,512"` as positive integers or `None`; empty for `None`.

    Raises:
        InvalidValueError: a part is neither, or there is none.
    """
    parts = _parts(text)
    numbers = iter(parse_integers(",".join(part for part in parts if part != "none") or None, option=option))
    if text is not None and not parts:
        raise InvalidValueError(f"{option} {text!r} names no value.", hint="Write it like 512 or none,512.")
    return tuple(dict.fromkeys(None if part == "none" else next(numbers) for part in parts))


def parse_failures(text: str | None, *, option: str) -> tuple[TrialStatus, ...]:
    """`"oom,crashed"` as statuses of failed trials; empty for `None`.

    Raises:
        InvalidValueError: a part is none, or there is no part.
    """
    parts = _parts(text)
    allowed = TrialStatus.failures()
    wrong = [part for part in parts if part not in allowed]
    if wrong or (text is not None and not parts):
        raise InvalidValueError.not_one_of(f"status of {option}", wrong[0] if wrong else text, allowed)
    return tuple(dict.fromkeys(TrialStatus(part) for part in parts))


def parse_integers(text: str | None, *, option: str) -> tuple[int, ...]:
    """`"512,1024"` as positive integers; empty for `None`.

    Raises:
        InvalidValueError: a part is not a positive integer, or there is none.
    """
    parts = _parts(text)
    if text is not None and (not parts or not all(_is_positive_integer(part) for part in parts)):
        raise InvalidValueError(
            f"{option} {text!r} is not a list of positive integers.", hint="Write it like 512 or 512,1024."
        )
    return tuple(int(part) for part in parts)


def parse_limit(text: str, *, option: str, example: str) -> float | None:
    """`"0.05"` as a positive number; `None` for `"off"`.

    Raises:
        InvalidValueError: it is neither; the message shows the `example`.
    """
    if text.strip().lower() == OFF:
        return None
    with contextlib.suppress(ValueError):
        value = float(text)
        if 0 < value < math.inf:
            return value
    raise InvalidValueError(
        f"{option} {text!r} is neither a positive number nor {OFF}.", hint=f"Write it like {example}."
    )


def parse_memory_limit(text: str, *, option: str) -> float | None:
    """`"8000"`, `"8000MiB"` or `"7.8 GiB"` as MiB (`MB` and `GB` are powers of ten); `None` for `"off"`.

    Raises:
        InvalidValueError: it is neither.
    """
    given = text.strip().lower()
    if given == OFF:
        return None
    if size := _SIZE.fullmatch(given):
        value = float(size["number"]) * _MIB_PER_UNIT[size["unit"]]
        if 0 < value < math.inf:
            return value
    raise InvalidValueError(
        f"{option} {text!r} is neither a size nor {OFF}.", hint="Write it like 8000 (which are MiB) or 8GiB."
    )


def _is_positive_integer(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS and int(text) > 0


def _parts(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]
