"""Events are kept as JSON in the history, from which they are told again after a kill."""

from __future__ import annotations

import datetime as dt
import json

from kvray.analysis.comparison import ComparedMetric
from kvray.analysis.intervals import Interval
from kvray.check.watch.events import ChangePoint, EventKind, WatchEvent, WatchState

AT = dt.datetime(2026, 3, 2, 6, tzinfo=dt.UTC)
CHANGE = Interval(value=0.08, low=0.05, high=0.11)


def test_an_event_comes_back_from_json() -> None:
    point = ChangePoint(metric=ComparedMetric.TTFT, at=AT, before=10.0, after=10.8, change=CHANGE)
    event = WatchEvent(
        event_id="20260302T060000Z-1-ttft-confirmed",
        kind=EventKind.CONFIRMED,
        at=AT,
        plan="tiny, ci-micro",
        watch_id="w1",
        text="Slower.",
        metric=ComparedMetric.TTFT,
        state=WatchState.CONFIRMED,
        change=CHANGE,
        change_point=point,
    )
    assert WatchEvent.from_dict(json.loads(json.dumps(event.to_dict()))) == event


def test_an_event_about_no_metric_comes_back_too() -> None:
    event = WatchEvent(event_id="1", kind=EventKind.SKIPPED, at=AT, plan="tiny", watch_id="w1", text="Busy.")
    assert WatchEvent.from_dict(json.loads(json.dumps(event.to_dict()))) == event


def test_alerts_are_what_somebody_should_be_called_for() -> None:
    assert {kind for kind in EventKind if kind.is_alert} == {"confirmed", "recovered", "machine"}
