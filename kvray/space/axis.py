"""`Axis`: something that an engine lets a user choose. The engine declares it; command line, space files and rules read
the declaration, and nothing else knows what a value means."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvray.candidate import MOST_DIGITS, SETTING_COLUMNS, Candidate, ParamValue, is_setting_name, setting_text
from kvray.errors import InvalidValueError, did_you_mean
from kvray.workload import WorkloadProfile

UNSET = "none"
"""What a user writes for an axis that is not set: the engine then does what it does by itself."""
_UNSET_WORDS = (UNSET, "null", "~")
AxisRequest = ParamValue | None
"""A value of one of the engine's own axes; `None`: not set."""
_TRUTH = {"true": True, "false": False}


class AxisKind(enum.Enum):
    """What the values of an axis are."""

    CHOICE = "choice"
    """Names without an order."""
    NUMBER = "number"
    """Numbers: near ones behave alike."""
    FLAG = "flag"
    """True or false."""


class Scale(enum.Enum):
    """How distance is measured between two values of a number axis."""

    LINEAR = "linear"
    LOG = "log"
    """By their ratio: 16 and 32 are as far apart as 256 and 512."""


@dataclass(frozen=True, kw_only=True)
class AxisValue:
    """A value of an axis on one machine.

    Attributes:
        value: as a user writes it; a cache may come with its settings. A word in place of a number, such as a unit,
            stands for every number.
        obstacle: why it cannot be had on this machine and what would make it so; `None`: it can be had.
        on_request: why it can be had but is not in the default space; `None`: it is.
    """

    value: str
    obstacle: str | None = None
    on_request: str | None = None


def _as_it_is(candidate: Candidate) -> Candidate:
    return candidate


def _as_given(value: ParamValue, candidate: Candidate, profile: WorkloadProfile) -> AxisRequest:
    del candidate, profile
    return value


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One thing that can be chosen, with its values on one machine.

    Attributes:
        name: the key in `--set`, in space files and in `Candidate.settings`.
        title: what messages call it, e.g. `tile size`.
        scale: of a number axis, else `None`.
        values: all of a choice or flag; of a number axis those worth a line.
        whole: whether a number axis takes whole numbers only.
        least, most: bounds of a number axis, both allowed.
        aliases: further words for a value; `None`: the axis is not set.
        default: what the engine does where the axis is not set: to ask for it is to leave the axis unset. `None`: not
            known.
        canonical: the value that a candidate gets in place of the one asked for, given the candidate and the workload,
            so that two requests which become one configuration are one candidate; `None`: the axis is not set.
        follows: of a shared axis, the candidate with the value that its own axes come to, such as a `quantized` cache
            where one of them is a type of few bits.
        parser: reads a value as a user writes it, where the kind does not say how.
        option: of the command line that sets it in place of `--set`.
    """

    name: str
    title: str
    kind: AxisKind
    scale: Scale | None = None
    values: tuple[AxisValue, ...] = ()
    whole: bool = True
    least: float = 1
    most: float = math.inf
    aliases: Mapping[str, AxisRequest] = field(default_factory=dict)
    default: AxisRequest = None
    canonical: Callable[[ParamValue, Candidate, WorkloadProfile], AxisRequest] = _as_given
    follows: Callable[[Candidate], Candidate] = _as_it_is
    parser: Callable[[str], Any] | None = None
    option: str | None = None

    def __post_init__(self) -> None:
        if not is_setting_name(self.name):
            raise InvalidValueError(f"Axis {self.name!r} is not a name of letters, digits and underscores.")
        if (self.kind is AxisKind.NUMBER) != (self.scale is not None):
            raise InvalidValueError(f"Axis {self.name} is a {self.kind.value} axis: scale {self.scale} does not fit.")

    def parse(self, text: str) -> Any:
        """The value that a user writes as `text`; `None`: the axis is not set.

        Raises:
            InvalidValueError: the axis has no such value.
        """
        if self.parser is not None:
            return self.parser(text)
        word = text.strip()
        if word.lower() in self.aliases:
            return self.aliases[word.lower()]
        if word.lower() in _UNSET_WORDS:
            return None
        value = self._value(word)
        return None if value == self.default else value

    def lines_of(self, value: ParamValue) -> tuple[str, ...]:
        """The `values` that `value` stands for: its own, or one that stands for every number."""
        text = setting_text(value)
        known = [one.value for one in self.values]
        if text in known or self.kind is not AxisKind.NUMBER:
            return (text,)
        return tuple(one for one in known if not one[:1].isdigit())

    def describe(self) -> str:
        """What can be written for it, e.g. `tile size: a whole number from 1 to 4096, auto or none`."""
        kinds = [self._bounds] if self.kind is AxisKind.NUMBER else [word for word in self._words if word != UNSET]
        *others, last = [*kinds, *self.aliases, UNSET]
        return f"{self.title}: {', '.join(others)} or {last}"

    @property
    def _words(self) -> Mapping[str, ParamValue]:
        return _TRUTH if self.kind is AxisKind.FLAG else {one.value: one.value for one in self.values}

    def _value(self, word: str) -> ParamValue:
        if self.kind is AxisKind.NUMBER:
            return self._number(word)
        if word not in self._words:
            words = [word for word in (*self._words, *self.aliases) if word != UNSET]
            # Nobody who means false is to be sent to none, which is the engine's default.
            near = did_you_mean(word, words if self.kind is AxisKind.FLAG else [*words, UNSET])
            raise InvalidValueError(
                f"Axis {self.name}: Unknown {self.title} {word!r}.",
                hint=f"{near}Allowed: {', '.join([*words, UNSET])}.",
            )
        return self._words[word]

    def _number(self, word: str) -> int | float:
        try:
            number = _whole(word) if self.whole else float(word)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and self.least <= number <= self.most):
            words = " nor ".join([*self.aliases, UNSET])
            raise InvalidValueError(f"Axis {self.name}: {self.title} {word!r} is neither {self._bounds} nor {words}.")
        return number

    @property
    def _bounds(self) -> str:
        what = "whole number" if self.whole else "number"
        if self.most == math.inf:
            return f"a positive {what}" if self.whole and self.least == 1 else f"a {what} of at least {self.least:g}"
        return f"a {what} from {self.least:g} to {self.most:g}"


def number_axis(
    name: str,
    title: str,
    *,
    unit: str = "N",
    default: int | None = None,
    scale: Scale = Scale.LOG,
    values: Iterable[AxisValue] = (),
    obstacle: str | None = None,
    on_request: str | None = None,
    **more: Any,
) -> Axis:
    """An axis of numbers, whole ones unless `more` says otherwise.

    Args:
        unit: stands for every number that is not among `values`, with this `obstacle` and `on_request`.
        more: further attributes of `Axis`.
    """
    any_other = AxisValue(value=unit, obstacle=obstacle, on_request=on_request)
    return Axis(
        name=name,
        title=title,
        kind=AxisKind.NUMBER,
        scale=scale,
        default=default,
        values=(*values, any_other),
        **more,
    )


def flag_axis(
    name: str,
    title: str,
    *,
    default: bool | None,
    obstacle: str | None = None,
    on_request: str | None = None,
    **more: Any,
) -> Axis:
    """An axis of two values, of which the one that is not the default is measured on request where `on_request` says
    so; `more` are further attributes of `Axis`."""
    values = tuple(
        AxisValue(value=setting_text(one), obstacle=obstacle, on_request=on_request if one != default else None)
        for one in (False, True)
    )
    return Axis(name=name, title=title, kind=AxisKind.FLAG, default=default, values=values, **more)


def canonical_form(candidate: Candidate, axes: Sequence[Axis], profile: WorkloadProfile) -> Candidate:
    """`candidate` with the settings that it comes to: those that change nothing are not set, and shared axes agree with
    them."""
    for axis in axes:
        value = candidate.setting(axis.name)
        if value is None:
            continue
        canonical = axis.canonical(value, candidate, profile)
        candidate = with_settings(candidate, {axis.name: None if canonical == axis.default else canonical})
    for axis in axes:
        candidate = axis.follows(candidate)
    return candidate


def with_settings(candidate: Candidate, values: Mapping[str, AxisRequest]) -> Candidate:
    """`candidate` with these axes set, or not set where the value is `None`."""
    columns: dict[str, Any] = {name: value for name, value in values.items() if name in SETTING_COLUMNS}
    settings = {**dict(candidate.settings), **{n: value for n, value in values.items() if n not in SETTING_COLUMNS}}
    set_ = tuple((name, value) for name, value in settings.items() if value is not None)
    return replace(candidate, **columns, settings=set_)


def _whole(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= MOST_DIGITS):
        raise ValueError(word)
    return int(word)
