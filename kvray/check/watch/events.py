"""What a watch makes known: `WatchEvent`, the states behind it, and `Sink`, the contract of who is told."""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

from kvray.analysis.comparison import ComparedMetric
from kvray.analysis.intervals import Interval
from kvray.store.history import Observation, ObservationRole

__all__ = [
    "ChangePoint",
    "EventKind",
    "Observation",
    "ObservationRole",
    "Sink",
    "WatchEvent",
    "WatchIdentity",
    "WatchState",
]


class WatchState(enum.StrEnum):
    """How one metric of the watched configuration stands."""

    OK = "ok"
    """At its level, as far as is known."""
    SUSPECTED = "suspected"
    """It seems to have become worse; not confirmed yet."""
    CONFIRMED = "confirmed"
    """It has become worse, and stays so until it has recovered."""
    RECOVERED = "recovered"
    """It was worse, and is back at its level; from the next observation on `ok`."""

    @property
    def is_worse(self) -> bool:
        """Whether a confirmed regression holds."""
        return self is WatchState.CONFIRMED


class EventKind(enum.StrEnum):
    """What is told."""

    OBSERVATION = "observation"
    SUSPECTED = "suspected"
    CONFIRMED = "confirmed"
    RECOVERED = "recovered"
    MACHINE = "machine"
    SKIPPED = "skipped"
    ERROR = "error"

    @property
    def is_alert(self) -> bool:
        """Whether somebody should be called, whatever the event says."""
        return self in (EventKind.CONFIRMED, EventKind.RECOVERED, EventKind.MACHINE)


@dataclass(frozen=True, kw_only=True)
class WatchIdentity:
    """Which watch it is, known before anything was observed. The names are those of an `Observation`."""

    watch_id: str
    model_id: str
    engine: str
    profile: str
    device_name: str


@dataclass(frozen=True, kw_only=True)
class ChangePoint:
    """A step in one series of the history.

    Attributes:
        metric: `None`: the machine, by its anchor.
        at: the first observation after the step.
        before, after: level on each side, in the metric's unit.
        change: after/before - 1, with its 95 % interval.
    """

    metric: ComparedMetric | None
    at: dt.datetime
    before: float
    after: float
    change: Interval


@dataclass(frozen=True, kw_only=True)
class WatchEvent:
    """One thing that a watch makes known.

    Attributes:
        event_id: names it for good: an event that is told again after a kill has the same.
        plan: what is watched, in short.
        watch_id: of the history.
        metric: `None` where it is not about one: an observation, the machine, an error.
        state: the metric's state after it.
        change: relative change of the metric, 0.06 is 6 % more, with its 95 % interval.
        change_point: of a suspicion and what follows from it.
        text: the whole of it in one sentence or two.
        observation: of `observation`, `suspected`, `confirmed`, `recovered` and `machine`: the row behind it.
    """

    event_id: str
    kind: EventKind
    at: dt.datetime
    plan: str
    watch_id: str
    text: str
    metric: ComparedMetric | None = None
    state: WatchState | None = None
    change: Interval | None = None
    change_point: ChangePoint | None = None
    observation: Observation | None = None

    @property
    def is_alert(self) -> bool:
        """Whether somebody should be called: also where what is watched can no longer be measured."""
        return self.kind.is_alert or (self.kind is EventKind.ERROR and self.observation is not None)

    @property
    def is_a_turn(self) -> bool:
        """Whether the history has changed: something was observed, or a turn was skipped."""
        return self.observation is not None or self.kind is EventKind.SKIPPED

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it. The observation is left out: it is a row of the history."""
        return {
            "event_id": self.event_id,
            "kind": self.kind.value,
            "at": self.at.isoformat(),
            "plan": self.plan,
            "watch_id": self.watch_id,
            "text": self.text,
            "metric": None if self.metric is None else self.metric.value,
            "state": None if self.state is None else self.state.value,
            "change": _interval_dict(self.change),
            "change_point": None if self.change_point is None else _point_dict(self.change_point),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], observation: Observation | None = None) -> Self:
        """Rebuild from `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        point = values["change_point"]
        return cls(
            event_id=str(values["event_id"]),
            kind=EventKind(values["kind"]),
            at=dt.datetime.fromisoformat(values["at"]),
            plan=str(values["plan"]),
            watch_id=str(values["watch_id"]),
            text=str(values["text"]),
            metric=_metric(values["metric"]),
            state=None if values["state"] is None else WatchState(values["state"]),
            change=_interval(values["change"]),
            change_point=None if point is None else _point(point),
            observation=observation,
        )


class Sink(Protocol):
    """Who is told. Made before the first observation, and closed after the last."""

    def tell(self, event: WatchEvent) -> None:
        """Take note of `event`, at once: whatever takes time happens elsewhere. Never raises."""

    def close(self) -> None:
        """Finish what is under way, in bounded time. Never raises."""


def _interval_dict(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else {"value": interval.value, "low": interval.low, "high": interval.high}


def _interval(values: Mapping[str, Any] | None) -> Interval | None:
    if values is None:
        return None
    return Interval(value=float(values["value"]), low=float(values["low"]), high=float(values["high"]))


def _metric(name: str | None) -> ComparedMetric | None:
    return None if name is None else ComparedMetric(name)


def _point_dict(point: ChangePoint) -> dict[str, Any]:
    return {
        "metric": None if point.metric is None else point.metric.value,
        "at": point.at.isoformat(),
        "before": point.before,
        "after": point.after,
        "change": _interval_dict(point.change),
    }


def _point(values: Mapping[str, Any]) -> ChangePoint:
    change = _interval(values["change"])
    if change is None:
        raise ValueError("a change point without its change")
    return ChangePoint(
        metric=_metric(values["metric"]),
        at=dt.datetime.fromisoformat(values["at"]),
        before=float(values["before"]),
        after=float(values["after"]),
        change=change,
    )
