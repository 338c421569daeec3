"""Values of options: comma-separated lists and axis values, with errors that say what is allowed."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from kvray.candidate import (
    MOST_DIGITS,
    AttentionBackend,
    AttentionChoice,
    CacheChoice,
    CacheStrategy,
    Choice,
    ParallelChoice,
    ParamValue,
)
from kvray.config import DISTURBED
from kvray.errors import InvalidValueError
from kvray.judgement import Weights
from kvray.record import TrialStatus

C = TypeVar("C", bound=Choice)
OFF = "off"
"""Lifts a limit."""
_MS_PER_UNIT = {"": 1.0, "ms": 1.0, "s": 1000.0}
_TOK_S_PER_UNIT = {"": 1.0, "tok/s": 1.0, "tokens/s": 1.0, "t/s": 1.0}
_MIB_PER_UNIT = {"": 1.0, "mib": 1.0, "gib": 1024.0, "mb": 1e6 / 2**20, "gb": 1e9 / 2**20}
_QUANTITY = re.compile(r"(?P<number>[\d.]+(e[+-]?\d+)?)\s*(?P<unit>[a-z/]*)", re.ASCII)
_WEIGHTS_HINT = "Write it like ttft=0.5,throughput=0.3,memory=0.2."
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


def parse_parallelism(text: str | None) -> tuple[ParallelChoice, ...]:
    """`"single,tp=2"` as choices; empty for `None`.

    Raises:
        InvalidValueError: a part is no such choice, or there is none.
    """
    parts = _parts(text)
    if text is not None and not parts:
        raise InvalidValueError(f"--parallelism {text!r} names no value.", hint="Write it like single,tp=2.")
    return tuple(dict.fromkeys(ParallelChoice.parse(part) for part in parts))


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


def parse_settings(
    texts: Sequence[str], *, option: str, **named: tuple[int | None, ...]
) -> dict[str, tuple[ParamValue | None, ...]]:
    """`["tile=16,64", "fused=true"]` as values by axis, beside those of options of their own (`named`, by axis).

    Raises:
        InvalidValueError: a text is not of that form, or an axis is given twice.
    """
    found: dict[str, tuple[ParamValue | None, ...]] = {axis: values for axis, values in named.items() if values}
    for text in texts:
        name, _, values = text.partition("=")
        axis, parts = name.strip(), _parts(values)
        if not axis or not parts:
            raise InvalidValueError(f"{option} {text!r} names no value.", hint=f"Write it like {option} NAME=V1,V2.")
        if axis in found:
            raise InvalidValueError(f"Axis {axis!r} is given twice.", hint=f"Write it once: {option} {axis}=V1,V2.")
        found[axis] = tuple(parts)
    return found


def parse_retry(text: str | None, *, option: str, also: Sequence[str] = ()) -> tuple[tuple[TrialStatus, ...], bool]:
    """`"oom,disturbed"` as statuses of failed trials, and whether disturbed candidates are meant, too; nothing for
    `None`. What is allowed `also` is named in the message alone.

    Raises:
        InvalidValueError: a part is neither, or there is no part.
    """
    parts = _parts(text)
    allowed = (*TrialStatus.failures(), DISTURBED)
    wrong = [part for part in parts if part not in allowed]
    if wrong or (text is not None and not parts):
        raise InvalidValueError.not_one_of(f"status of {option}", wrong[0] if wrong else text, (*also, *allowed))
    statuses = dict.fromkeys(TrialStatus(part) for part in parts if part != DISTURBED)
    return tuple(statuses), DISTURBED in parts


def parse_assignments(texts: Iterable[str], *, option: str, only_once: bool = False) -> dict[str, str]:
    """`["vllm=/a/python"]` as values by name; of several for one name the last counts.

    Args:
        only_once: whether a second value for one name is refused instead.

    Raises:
        InvalidValueError: one has no name or no value, or its name has a value already.
    """
    values: dict[str, str] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        if not name or not value:
            raise InvalidValueError(
                f"{option} {text!r} is not of the form NAME=VALUE.", hint=f"Write it like {option} llama_cpp=PATH."
            )
        if only_once and values.get(name, value) != value:
            raise InvalidValueError(
                f"{option} names {name} twice: {values[name]!r} and {value!r}.", hint="Give one of them."
            )
        values[name] = value
    return values


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


def parse_number_limit(text: str, *, option: str) -> float | None:
    """`"0.05"` as a positive number; `None` for `"off"`.

    Raises:
        InvalidValueError: it is neither.
    """
    return _limit(text, option=option, what="a positive number", units={"": 1.0}, example="0.05")


def parse_time_limit(text: str, *, option: str) -> float | None:
    """`"400"`, `"400ms"` or `"0.4 s"` as milliseconds; `None` for `"off"`.

    Raises:
        InvalidValueError: it is neither.
    """
    if re.fullmatch(r"\s*0?\.\d+\s*", text, re.ASCII):
        raise InvalidValueError(
            f"{option} {text.strip()!r}: a number alone means milliseconds.",
            hint=f"Write {text.strip()}s for seconds, or {text.strip()}ms.",
        )
    return _limit(text, option=option, what="a time", units=_MS_PER_UNIT, example="400 (which are ms), 400ms or 0.4s")


def parse_rate_limit(text: str, *, option: str) -> float | None:
    """`"30"` or `"30tok/s"` as tokens per second; `None` for `"off"`.

    Raises:
        InvalidValueError: it is neither.
    """
    return _limit(text, option=option, what="a rate", units=_TOK_S_PER_UNIT, example="30 or 30tok/s")


def parse_memory_limit(text: str, *, option: str) -> float | None:
    """`"8000"`, `"8000MiB"` or `"7.8 GiB"` as MiB (`MB` and `GB` are powers of ten); `None` for `"off"`.

    Raises:
        InvalidValueError: it is neither.
    """
    return _limit(text, option=option, what="a size", units=_MIB_PER_UNIT, example="8000 (which are MiB), 8GiB or 8GB")


def parse_weights(text: str | None) -> Weights | None:
    """`"ttft=0.5,throughput=0.3,memory=0.2"` as the weights of the score; one that is not named is 0.

    Raises:
        InvalidValueError: it is not of that form, or the weights do not sum to 1.
    """
    if text is None:
        return None
    pairs = [part.partition("=") for part in _parts(text)]
    weights = dict.fromkeys(Weights._fields, 0.0)
    for name, _, value in pairs:
        if name.strip() not in weights:
            raise InvalidValueError.not_one_of("weight of --weights", name.strip(), weights)
        with contextlib.suppress(ValueError):
            weights[name.strip()] = float(value)
            continue
        raise InvalidValueError(f"--weights {text!r}: {value.strip()!r} is not a number.", hint=_WEIGHTS_HINT)
    total = math.fsum(weights.values())
    if not all(0 <= weight <= 1 for weight in weights.values()) or not math.isclose(total, 1.0, abs_tol=1e-6):
        raise InvalidValueError(f"--weights {text!r} must be between 0 and 1 and sum to 1.", hint=_WEIGHTS_HINT)
    return Weights(**weights)


def _limit(text: str, *, option: str, what: str, units: Mapping[str, float], example: str) -> float | None:
    """A positive number with one of `units` (by what one of it is), or `None` for `"off"`."""
    given = text.strip().lower()
    if given == OFF:
        return None
    match = _QUANTITY.fullmatch(given)
    if match and match["unit"] in units:
        with contextlib.suppress(ValueError):
            value = float(match["number"]) * units[match["unit"]]
            if 0 < value < math.inf:
                return value
    raise InvalidValueError(f"{option} {text!r} is neither {what} nor {OFF}.", hint=f"Write it like {example}.")


def _is_positive_integer(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS and int(text) > 0


def _parts(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]
