"""What a judgement is told as, and who has been told: after a kill, what nobody was told is told again."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from kvray.analysis.intervals import Interval
from kvray.check.watch.events import ChangePoint, EventKind, Sink, WatchEvent, WatchState
from kvray.check.watch.levels import Change
from kvray.check.watch.observed import stored_events
from kvray.check.watch.states import REFUTED_SDS, Judged, name_of
from kvray.check.watch.words import (
    better_text,
    by_machine_text,
    confirmed_text,
    failure_text,
    observation_text,
    recovered_text,
    refuted_text,
    suspicion_text,
    unsure_recovery_text,
)
from kvray.errors import sentence_of
from kvray.files.file_systems import write_whole
from kvray.store.history import Observation, ObservationRole

_logger = logging.getLogger("kvray.watch")


def events_of(row: Observation, judged: Sequence[Judged], rows: Sequence[Observation], plan: str) -> list[WatchEvent]:
    """What the observation `row`, the last of `rows`, makes known."""
    kind = EventKind.ERROR if _has_begun_to_fail(rows) else EventKind.OBSERVATION
    first = WatchEvent(
        event_id=f"{row.observation_id}-0-{kind}",
        kind=kind,
        at=row.observed_at,
        plan=plan,
        watch_id=row.watch_id,
        text=failure_text(row, plan) if kind is EventKind.ERROR else observation_text(row),
        observation=row,
    )
    told = [(one, *found) for one in judged if (found := _told(one, row, rows, plan)) is not None]
    return [
        first,
        *(
            WatchEvent(
                event_id=f"{row.observation_id}-{number}-{name_of(one.watched)}-{kind}",
                kind=kind,
                at=row.observed_at,
                plan=plan,
                watch_id=row.watch_id,
                text=text,
                metric=one.watched,
                state=one.standing.state,
                change=None if _may_be_back(one, row) else _interval_of(one.change),
                change_point=None if _may_be_back(one, row) else _point_of(one),
                observation=row,
            )
            for number, (one, kind, text) in enumerate(told, start=1)
        ),
    ]


def _has_begun_to_fail(rows: Sequence[Observation]) -> bool:
    """Whether no process of the last regular observation came to its end, for the first time in a row."""
    return rows[-1].role is ObservationRole.ANCHOR and not any(
        one.role is ObservationRole.ANCHOR for one in rows[-2:-1]
    )


def _told(one: Judged, row: Observation, rows: Sequence[Observation], plan: str) -> tuple[EventKind, str] | None:
    """As what, and how; `None`: not at all."""
    if one.is_new and one.by_machine:
        return EventKind.OBSERVATION, by_machine_text(one, plan)
    if one.is_new:
        is_machine = one.watched is None
        if one.standing.state is WatchState.RECOVERED:
            return EventKind.MACHINE if is_machine else EventKind.RECOVERED, recovered_text(one, plan, rows)
        if one.change is not None and one.change.is_worse:
            return EventKind.MACHINE if is_machine else EventKind.CONFIRMED, confirmed_text(one, plan, rows)
        return EventKind.OBSERVATION, better_text(one, plan, rows)
    if one.needs_rounds and one.standing.state is WatchState.SUSPECTED and one.was is not WatchState.SUSPECTED:
        return EventKind.SUSPECTED, suspicion_text(one, plan)
    if one.was is WatchState.SUSPECTED and one.standing.state is WatchState.OK:
        return EventKind.OBSERVATION, refuted_text(one, plan)
    if _may_be_back(one, row):
        return EventKind.OBSERVATION, unsure_recovery_text(one, plan)
    return None


def _may_be_back(one: Judged, row: Observation) -> bool:
    """Whether the confirming rounds look like a recovery and are too few to be sure of it."""
    is_looked_into = row.role is ObservationRole.CONFIRM and not one.is_new
    if one.change is None or not is_looked_into or one.standing.state is not WatchState.CONFIRMED:
        return False
    return not one.change.is_worse and one.change.noise_sds >= REFUTED_SDS


def _interval_of(change: Change | None) -> Interval | None:
    return None if change is None else change.change


def _point_of(one: Judged) -> ChangePoint | None:
    change = one.change
    if change is None:
        return None
    at = dt.datetime.fromtimestamp(change.at_s, dt.UTC)
    return ChangePoint(metric=one.watched, at=at, before=change.before, after=change.now, change=change.change)


class Teller:
    """Tells all `sinks`, and remembers in the file `marker` up to which observation that is done."""

    def __init__(self, sinks: Sequence[Sink], marker: Path) -> None:
        self._sinks = tuple(sinks)
        self._marker = marker

    def tell(self, events: Iterable[WatchEvent]) -> None:
        """Tell `events`, which are not of the history."""
        for event in events:
            for sink in self._sinks:
                try:
                    sink.tell(event)
                except Exception as error:  # noqa: BLE001  (the boundary: a sink must never stop the measuring)
                    _logger.warning("An event could not be told: %s", sentence_of(error))

    def tell_row(self, row: Observation) -> None:
        """Tell what `row` makes known, which lies in the history already."""
        self.tell(stored_events(row))
        with contextlib.suppress(OSError):  # then it may be told once more; every event has an id
            write_whole(self._marker, json.dumps({"told": row.observation_id}).encode())

    def catch_up(self, rows: Sequence[Observation]) -> None:
        """Tell what an earlier process wrote down and was killed before telling."""
        told = self._last_told()
        for row in rows[-1:] if told is None else rows:
            if told is None or row.observation_id > told:
                self.tell_row(row)

    def close(self) -> None:
        """Let all sinks finish."""
        for sink in self._sinks:
            sink.close()

    def _last_told(self) -> str | None:
        try:
            return str(json.loads(self._marker.read_text(encoding="utf-8"))["told"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None


def event_json(events: Sequence[WatchEvent]) -> str:
    """As a row of the history holds them."""
    return json.dumps([one.to_dict() for one in events])
