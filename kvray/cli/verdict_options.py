"""Options of all commands that end with a verdict: `--margin ttft=5%,decode=5%,memory=2%` and `--on-inconclusive`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

import typer

from kvray.analysis.comparison import ComparedMetric
from kvray.check.result import OnInconclusive
from kvray.errors import InvalidValueError, did_you_mean

Margin = Annotated[
    str | None,
    typer.Option("--margin", metavar="LIST", help="How much worse each may get: ttft=5%,memory=2%."),
]
OnInconclusiveText = Annotated[
    str | None,
    typer.Option("--on-inconclusive", metavar="pass|fail", help="What INCONCLUSIVE (exit code 14) counts as."),
]
_FORM = "Write it like ttft=5%,decode=5%,memory=2%, with parts from 0.1% to 90%; off shows a metric without judging it."
_LEAST, _MOST = 0.001, 0.9


def parse_margins(
    text: str | None, *, otherwise: Mapping[ComparedMetric, float], option: str = "--margin"
) -> dict[ComparedMetric, float]:
    """The margins in `text`; a metric that it does not name keeps what it has in `otherwise`.

    Raises:
        InvalidValueError: as `given_margins`, or nothing is left to judge.
    """
    margins = {**otherwise, **given_margins(text, option=option)}
    kept = {metric: margin for metric, margin in margins.items() if margin is not None}
    if not kept:
        raise InvalidValueError(f"{option} {text!r} leaves nothing to judge.", hint=_FORM)
    return kept


def given_margins(text: str | None, *, option: str = "--margin") -> dict[ComparedMetric, float | None]:
    """What `text` says of each metric that it names; `None`: it is not judged.

    Raises:
        InvalidValueError: a part has another form, an unknown metric, or makes no sense as a margin.
    """
    margins: dict[ComparedMetric, float | None] = {}
    for part in () if text is None else (part.strip() for part in text.split(",")):
        name, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator or name not in list(ComparedMetric):
            hint = did_you_mean(name, list(ComparedMetric)) if separator else ""
            raise InvalidValueError(f"{option} {part!r} is no margin.", hint=f"{hint}{_FORM}")
        if ComparedMetric(name) in margins:
            raise InvalidValueError(f"{option} names {name} twice.", hint=_FORM)
        margins[ComparedMetric(name)] = None if value == "off" else _share(value, f"{option} {part!r}")
    if len(margins) == len(ComparedMetric) and not any(margins.values()):
        raise InvalidValueError(f"{option} {text!r} leaves nothing to judge.", hint=_FORM)
    return margins


def counts_as(text: str | None) -> OnInconclusive | None:
    """What `--on-inconclusive` says.

    Raises:
        InvalidValueError: it is neither `pass` nor `fail`.
    """
    if text is None:
        return None
    if text not in list(OnInconclusive):
        raise InvalidValueError.not_one_of("--on-inconclusive", text, list(OnInconclusive))
    return OnInconclusive(text)


def _share(value: str, what: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", value, flags=re.ASCII)
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not _LEAST <= share <= _MOST:
        raise InvalidValueError(f"{what} is no margin between 0.1 % and 90 %.", hint=_FORM)
    return share
