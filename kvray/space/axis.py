"""`Axis`: something that an engine lets a user choose. The engine declares it; command line, space files and rules read
the declaration, and nothing else knows what a value means."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvray.candidate import MOST_DIGITS, Candidate, ParamValue, is_setting_name
from kvray.errors import InvalidValueError
from kvray.workload import WorkloadProfile

UNSET = "none"
"""What a user writes for an axis that is not set: the engine then does what it does by itself."""
AxisRequest = ParamValue | None
"""A value of an axis of the engine's own; `None`: not set."""
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
        value: as a user writes it; a cache may come with its settings. Where any number can be had it is the unit.
        obstacle: why it cannot be had on this machine and what would make it so; `None`: it can be had.
        on_request: why it can be had but is not in the default space; `None`: it is.
    """

    value: str
    obstacle: str | None = None
    on_request: str | None = None


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
        values: all of a choice or flag; of a number axis those worth a line, or its unit, which stands for any number.
        whole: whether a number axis takes whole numbers only.
        least, most: bounds of a number axis, both allowed.
        aliases: further words for a value; `None`: the axis is not set.
        default: what the engine does where the axis is not set: asking for it is no change. `None`: not known.
        canonical: the value that a candidate is given in place of the one asked for, so that two requests which become
            one configuration are one candidate; `None`: the axis is not set. It is told the candidate and the workload.
        parser: reads a value as a user writes it, in place of what the kind says.
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
    parser: Callable[[str], Any] | None = None

    def __post_init__(self) -> None:
        if not is_setting_name(self.name):
            raise InvalidValueError(f"Axis {self.name!r} is not a name of letters, digits and underscores.")
        if (self.kind is AxisKind.NUMBER) != (self.scale is not None):
            raise InvalidValueError(f"Axis {self.name} is a {self.kind.value} axis: scale {self.scale} does not fit.")

    def parse(self, text: str) -> Any:
        """The value that a user writes as `text`; `None` for `none`, which leaves the axis as it is.

        Raises:
            InvalidValueError: the axis has no such value.
        """
        if self.parser is not None:
            return self.parser(text)
        word = text.strip()
        if word.lower() in self.aliases:
            return self.aliases[word.lower()]
        if word.lower() == UNSET:
            return None
        return self._value(word)

    def _value(self, word: str) -> ParamValue:
        match self.kind:
            case AxisKind.NUMBER:
                return self._number(word)
            case AxisKind.FLAG:
                known: Mapping[str, ParamValue] = _TRUTH
            case AxisKind.CHOICE:
                known = {one.value: one.value for one in self.values}
        if word not in known:
            raise InvalidValueError.not_one_of(self.title, word, [*known, *self.aliases, UNSET])
        return known[word]

    def _number(self, word: str) -> int | float:
        try:
            number = _whole(word) if self.whole else float(word)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and self.least <= number <= self.most):
            raise InvalidValueError(
                f"{self.title} {word!r} is neither {self._bounds} nor {' nor '.join([*self.aliases, UNSET])}."
            )
        return number

    @property
    def _bounds(self) -> str:
        what = "whole number" if self.whole else "number"
        if self.most == math.inf:
            return f"a positive {what}" if self.whole and self.least == 1 else f"a {what} of at least {self.least:g}"
        return f"a {what} from {self.least:g} to {self.most:g}"


def _whole(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= MOST_DIGITS):
        raise ValueError(word)
    return int(word)
