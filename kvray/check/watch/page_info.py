"""What a watch's page says, computed from its history alone. `page_charts.py` draws, `page.py` renders."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kvray.analysis.comparison import ComparedMetric
from kvray.analysis.intervals import Interval
from kvray.check.watch.events import EventKind, Observation, WatchEvent, WatchState
from kvray.check.watch.observed import (
    around,
    differences,
    figure_of,
    is_calm,
    levels,
    remark,
    skipped_since,
    state_of,
    stored_events,
)
from kvray.ratios import amount_interval_text, amount_sign
from kvray.record import short_model_name
from kvray.report import formats
from kvray.report.facts import Fact
from kvray.report.verdict import Tone
from kvray.store.skipped import SkippedTurn

MOST_ROWS = 200
"""Observations in the page's table; the history has all."""
AROUND = 5
"""Observations on each side of a change point, whose medians tell how the machine's own speed moved there."""
_BADGES = {
    EventKind.CONFIRMED: "failure",
    EventKind.MACHINE: "failure",
    EventKind.ERROR: "failure",
}
_RATES: tuple[tuple[str, Callable[[Observation], float | None]], ...] = (
    ("copying memory", lambda one: one.copy_gb_s),
    ("matrix multiplication", lambda one: one.matmul_gflop_s),
)


@dataclass(frozen=True, kw_only=True)
class MetricNow:
    """One metric at the last observation that measured it.

    Attributes:
        level: median of the calm observations since the last change point.
        change: of the change point that still holds; empty where there is none.
    """

    title: str
    unit: str
    value: float
    level: float | None
    state: WatchState
    change: str


@dataclass(frozen=True, kw_only=True)
class EventRow:
    """One event of the table.

    Attributes:
        what: the event's kind; `note` for a change that is nobody's alarm.
        figures: `100 → 112 ms`; empty where the event has none.
        differences: what kvray records and what changed there; `None` where the event is no change point.
    """

    event: WatchEvent
    at: str
    badge: str
    what: str
    title: str
    change: str
    figures: str
    differences: tuple[str, ...] | None

    @property
    def changed(self) -> str:
        """The differences as a cell of the table."""
        return "–" if self.differences is None else "; ".join(self.differences) or "nothing that kvray records"


@dataclass(frozen=True, kw_only=True)
class ObservationRow:
    """One observation of the table; `remark` says why it may count less."""

    observation: Observation
    at: str
    remark: str


@dataclass(frozen=True, kw_only=True)
class PageInfo:
    """The page, but for its charts.

    Attributes:
        observations: all of them, oldest first, for the charts.
        events: newest first.
        rows: the newest observations first, at most `MOST_ROWS`.
        left_out: older observations that have no row.
    """

    title: str
    subtitle: str
    sentence: str
    tone: Tone
    notes: tuple[str, ...]
    counts: str
    metrics: tuple[MetricNow, ...]
    observations: tuple[Observation, ...]
    events: tuple[EventRow, ...]
    rows: tuple[ObservationRow, ...]
    left_out: int
    facts: tuple[Fact, ...]


def page_info(observations: Sequence[Observation], skipped: Sequence[SkippedTurn] = ()) -> PageInfo:
    """The page of one watch with at least one observation; `observations` and `skipped` turns are in the order of
    time."""
    last, first = observations[-1], observations[0]
    told = [event for one in observations for event in stored_events(one)]
    newest = observations[: -MOST_ROWS - 1 : -1]
    return PageInfo(
        title=f"Watch of {formats.clean_line(short_model_name(last.model_id))}",
        subtitle=formats.clean_line(
            f"profile {last.profile} on {last.device_name}, watched since {formats.timestamp(first.observed_at)}"
        ),
        sentence=_sentence(observations, told),
        tone=_tone(observations),
        notes=(*_notes(observations, told), *_skipped_notes(last, skipped)),
        counts=_counts(observations, skipped),
        metrics=tuple(now for metric in ComparedMetric if (now := _metric_now(metric, observations, told))),
        observations=tuple(observations),
        events=tuple(_event_row(event, observations) for event in reversed(told) if _is_shown(event)),
        rows=tuple(
            ObservationRow(observation=one, at=formats.timestamp(one.observed_at), remark=remark(one)) for one in newest
        ),
        left_out=len(observations) - len(newest),
        facts=tuple(_facts(last)),
    )


def _is_shown(event: WatchEvent) -> bool:
    """The figures of an observation have a table of their own."""
    return event.kind is not EventKind.OBSERVATION or event.change_point is not None


def _event_row(event: WatchEvent, observations: Sequence[Observation]) -> EventRow:
    point = event.change_point
    metric = event.metric
    unit = f" {metric.unit}" if metric else ""
    change = event.change or (point.change if point else None)
    return EventRow(
        event=event,
        at=formats.timestamp(event.at),
        badge="winner" if _is_recovery(event) else _BADGES.get(event.kind, ""),
        what="note" if event.kind is EventKind.OBSERVATION else event.kind.value,
        title=metric.title if metric else "the machine" if point else "–",
        change=_change_text(change) if change else "–",
        figures=f"{formats.quantity(point.before)} → {formats.quantity(point.after)}{unit}" if point else "–",
        differences=None if point is None else _differences_at(point.at, observations),
    )


def _differences_at(at: dt.datetime, observations: Sequence[Observation]) -> tuple[str, ...] | None:
    before, after = around(at, observations)
    return differences(before[-1], after[0]) if before and after else None


def _holding(metric: ComparedMetric | None, told: Sequence[WatchEvent]) -> WatchEvent | None:
    """The confirmed step of a metric that has not been recovered from."""
    kinds = (EventKind.CONFIRMED, EventKind.RECOVERED) if metric else (EventKind.MACHINE,)
    found = [one for one in told if one.metric is metric and one.kind in kinds and one.change_point is not None]
    return found[-1] if found and not _is_recovery(found[-1]) else None


def _change_text(change: Interval) -> str:
    factor, low, high = 1 + change.value, 1 + change.low, 1 + change.high
    return f"{amount_sign(factor)} ({amount_interval_text(factor, low, high)})"


def _is_recovery(event: WatchEvent) -> bool:
    return event.kind is EventKind.RECOVERED or event.state is WatchState.RECOVERED


def _sentence(observations: Sequence[Observation], told: Sequence[WatchEvent]) -> str:
    last = observations[-1]
    worse = [metric for metric in ComparedMetric if state_of(metric, last).is_worse]
    suspected = [metric.title for metric in ComparedMetric if state_of(metric, last) is WatchState.SUSPECTED]
    if all(one.processes == 0 for one in observations):
        return "Nothing could be measured yet."
    if not last.processes:
        return f"It can no longer be measured, since {formats.timestamp(_begun_to_fail(observations).observed_at)}."
    if worse:
        return f"Worse than before: {'; '.join(_worse_text(metric, told) for metric in worse)}."
    if last.machine_state == WatchState.CONFIRMED:
        return f"The machine itself has become slower{_since(_holding(None, told))}."
    if suspected:
        return f"Perhaps worse: {formats.listed(suspected)}. It is not confirmed yet."
    recovered = [one for one in told if one.kind is EventKind.RECOVERED]
    since = recovered[-1].at if recovered else observations[0].observed_at
    why = "the last recovery" if recovered else "the watch began"
    return f"As good as before: nothing has become worse since {why} ({formats.timestamp(since)})."


def _begun_to_fail(observations: Sequence[Observation]) -> Observation:
    """The first of the last observations that measured nothing."""
    return next(
        after
        for before, after in zip(observations[-2::-1], observations[::-1], strict=False)
        if before.processes and not after.processes
    )


def _worse_text(metric: ComparedMetric, told: Sequence[WatchEvent]) -> str:
    event = _holding(metric, told)
    point = event.change_point if event else None
    if point is None:
        return metric.title
    change = amount_sign(1 + point.change.value)
    figures = f"{formats.quantity(point.before)} → {formats.quantity(point.after)} {metric.unit}"
    return f"{metric.title} {change} ({figures}){_since(event)}"


def _since(event: WatchEvent | None) -> str:
    return "" if event is None or event.change_point is None else f" since {formats.timestamp(event.change_point.at)}"


def _tone(observations: Sequence[Observation]) -> Tone:
    last = observations[-1]
    states = [state_of(metric, last) for metric in ComparedMetric]
    if not last.processes:
        return Tone.FAILED
    if any(one is not WatchState.OK and one is not WatchState.RECOVERED for one in states):
        return Tone.DOUBTFUL
    return Tone.GOOD if last.machine_state == WatchState.OK else Tone.DOUBTFUL


def _notes(observations: Sequence[Observation], told: Sequence[WatchEvent]) -> list[str]:
    last = observations[-1]
    holding = [event for metric in ComparedMetric if (event := _holding(metric, told))]
    notes: list[str] = []
    for at in dict.fromkeys(event.change_point.at for event in holding if event.change_point):
        notes += [note for note in (_changed_note(at, observations), _machine_note(at, observations)) if note]
    if last.processes == 0:
        why = formats.clean_line(last.message or last.load or "no process came to its end").rstrip(".")
        notes.append(f"The last observation ({formats.timestamp(last.observed_at)}) measured nothing: {why}.")
    return notes


def _skipped_notes(last: Observation, skipped: Sequence[SkippedTurn]) -> list[str]:
    """Whether it was looked at lately."""
    since = skipped_since(last, skipped)
    if not since:
        return []
    why = formats.clean_line(since[-1].reason).rstrip(".")
    turns = "the last turn was" if len(since) == 1 else f"the last {formats.count(len(since))} turns were"
    return [
        f"Not looked at since {formats.timestamp(last.observed_at)}: {turns} skipped because others used the machine, "
        f"the latest on {formats.timestamp(since[-1].at)} ({why})."
    ]


def _changed_note(at: dt.datetime, observations: Sequence[Observation]) -> str | None:
    before, after = around(at, observations)
    if not before or not after:
        return None
    between = (
        f"between the last observation before it ({formats.timestamp(before[-1].observed_at)}) and the first after it "
        f"({formats.timestamp(after[0].observed_at)})"
    )
    found = differences(before[-1], after[0])
    if not found:
        return f"Nothing that kvray records has changed {between}: no version, no kernel, no device."
    return f"What changed {between}: {'; '.join(found)}."


def _machine_note(at: dt.datetime, observations: Sequence[Observation]) -> str | None:
    """How the anchor moved there: whether it is the machine."""
    before, after = around(at, observations)
    if not before or not after:
        return None
    moves = []
    for name, rate in _RATES:
        was, now = (
            [value for one in side if one.anchor == after[0].anchor and (value := rate(one)) is not None]
            for side in (before[-AROUND:], after[:AROUND])
        )
        if was and now:
            moves.append(f"{name} {amount_sign(float(np.median(now)) / float(np.median(was)))}")
    return f"The machine's own speed there, by the anchor: {formats.listed(moves)}." if moves else None


def _counts(observations: Sequence[Observation], skipped: Sequence[SkippedTurn]) -> str:
    disturbed = sum(not is_calm(one) for one in observations if one.processes)
    missing = sum(one.processes == 0 for one in observations)
    parts = [formats.plural(len(observations), "observation")]
    parts += [f"{formats.count(disturbed)} disturbed"] if disturbed else []
    parts += [f"{formats.count(missing)} not measured"] if missing else []
    parts += [f"{formats.plural(len(skipped), 'turn')} skipped"] if skipped else []
    return f"{', '.join(parts)}; the last on {formats.timestamp(observations[-1].observed_at)}."


def _metric_now(
    metric: ComparedMetric, observations: Sequence[Observation], told: Sequence[WatchEvent]
) -> MetricNow | None:
    values = [value for one in observations if (value := figure_of(metric, one)) is not None]
    if not values:
        return None
    state = state_of(metric, observations[-1])
    event = _holding(metric, told) if state.is_worse else None
    point = event.change_point if event else None
    found = levels(metric, observations)
    return MetricNow(
        title=metric.title,
        unit=metric.unit,
        value=values[-1],
        level=found[-1][2] if found else None,
        state=state,
        change=f"{amount_sign(1 + point.change.value)} since {formats.timestamp(point.at)}" if point else "",
    )


def _facts(last: Observation) -> list[Fact]:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(last.engine_versions.items()))
    pairs = [
        ("Model", last.model_id),
        ("Configuration", ", ".join((*(event.plan for event in list(stored_events(last))[:1]), last.candidate_id))),
        ("Engine", f"{last.engine} ({versions})" if versions else last.engine),
        ("What ran", last.kernels),
        ("Device", last.device_name),
        ("Host", last.host),
        ("Driver", last.driver_version),
        ("Python", last.python_version),
        ("kvray", last.kvray_version),
        ("Anchor", last.anchor),
    ]
    return [Fact(name=name, text=formats.clean_line(text)) for name, text in pairs if text]
