"""The text format in which Prometheus reads metrics, version 0.0.4: what both of its sinks write."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Described(Protocol):
    """A metric that can be exported."""

    @property
    def exported_name(self) -> str:
        """E.g. `kvray_watch_observations_total`."""

    @property
    def help(self) -> str:
        """What it tells, in one sentence."""

    @property
    def type(self) -> str:
        """`gauge` or `counter`."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The value of one metric now."""

    metric: Described
    value: float
    labels: Mapping[str, str]


def exposition(samples: Iterable[Sample]) -> str:
    """All samples, those of one metric together; without a sample, nothing."""
    together: dict[str, list[Sample]] = {}
    for one in samples:
        together.setdefault(one.metric.exported_name, []).append(one)
    return "".join(line for name, group in together.items() for line in _family(name, group))


def _family(name: str, group: list[Sample]) -> Iterable[str]:
    metric = group[0].metric
    yield f"# HELP {name} {_escaped(metric.help)}\n"
    yield f"# TYPE {name} {metric.type}\n"
    for one in group:
        labels = ",".join(f'{key}="{_quoted(value)}"' for key, value in one.labels.items())
        yield f"{name}{{{labels}}} {_number(one.value)}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _quoted(text: str) -> str:
    return _escaped(text.encode(errors="replace").decode()).replace('"', r"\"")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))
