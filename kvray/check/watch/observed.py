"""What a history says by itself, for its page and for Prometheus: figures, states, levels, and what changed where."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from kvray.analysis.comparison import ComparedMetric
from kvray.check.watch.events import EventKind, Observation, ObservationRole, WatchEvent, WatchState
from kvray.report import formats
from kvray.store.skipped import SkippedTurn

_CPU_ANCHOR = re.compile(r"CPU, (\d+) threads?(?:, (.+))?")
"""As `anchor.measure_cpu` names it."""


def stored_events(observation: Observation) -> Iterator[WatchEvent]:
    """What became known with it. Events that this kvray cannot read are passed over."""
    try:
        listed = json.loads(observation.events)
    except (ValueError, RecursionError):
        return
    for values in listed if isinstance(listed, list) else ():
        with contextlib.suppress(KeyError, TypeError, ValueError):
            yield WatchEvent.from_dict(values, observation=observation)


def figure_of(metric: ComparedMetric, observation: Observation) -> float | None:
    """The metric's value, in its unit."""
    return {
        ComparedMetric.TTFT: observation.ttft_ms,
        ComparedMetric.DECODE: observation.decode_tok_s,
        ComparedMetric.MEMORY: observation.peak_mib,
    }[metric]


def state_of(metric: ComparedMetric, observation: Observation) -> WatchState:
    """The metric's state after the observation; `ok` where the history has a word that this kvray does not know."""
    word = {
        ComparedMetric.TTFT: observation.ttft_state,
        ComparedMetric.DECODE: observation.decode_state,
        ComparedMetric.MEMORY: observation.memory_state,
    }[metric]
    return WatchState(word) if word in list(WatchState) else WatchState.OK


def is_calm(observation: Observation) -> bool:
    """Whether it counts: others may have used the machine when it began and still not have disturbed its runs."""
    return not observation.disturbed


def skipped_since(last: Observation, skipped: Sequence[SkippedTurn]) -> list[SkippedTurn]:
    """The turns after the observation `last` that were skipped, oldest first."""
    return [one for one in skipped if one.at > last.observed_at]


def remark(observation: Observation) -> str:
    """Why an observation may count less, or was made out of turn; empty where it is an ordinary one."""
    parts: list[str] = []
    if observation.processes == 0:
        parts.append(f"not measured: {observation.message or 'no process came to its end'}")
    elif observation.role is ObservationRole.CONFIRM:
        parts.append("measured at once, after a suspicion")
    if observation.disturbed:
        parts.append("disturbed by other programs")
    if observation.load:
        parts.append(observation.load)
    return formats.clean_line("; ".join(parts))


def change_points(metric: ComparedMetric | None, observations: Sequence[Observation]) -> list[WatchEvent]:
    """Events from which on a metric, or the machine (`None`), was on another level, oldest first; each has a change
    point. Beside alerts these are improvements, and changes that the machine explains."""
    kinds = (EventKind.MACHINE,) if metric is None else (EventKind.CONFIRMED, EventKind.RECOVERED)
    moved = _moments_of_levels(metric, observations)
    told = (event for one in observations for event in stored_events(one))
    return [
        one
        for one in told
        if one.metric is metric
        and one.change_point is not None
        and (one.kind in kinds or (one.kind is EventKind.OBSERVATION and one.change_point.at in moved))
    ]


def levels(metric: ComparedMetric, observations: Sequence[Observation]) -> list[tuple[dt.datetime, dt.datetime, float]]:
    """From, to and median of the calm observations between change points; where none was calm, of all."""
    told = [one.change_point.at for one in change_points(metric, observations) if one.change_point is not None]
    starts = sorted({*told, *_moments_of_levels(metric, observations)} - {observations[0].observed_at})
    bounds = [observations[0].observed_at, *starts]
    ends = [*starts, observations[-1].observed_at + dt.timedelta(microseconds=1)]
    found: list[tuple[dt.datetime, dt.datetime, float]] = []
    for begin, end in zip(bounds, ends, strict=True):
        inside = [
            (one, value)
            for one in observations
            if begin <= one.observed_at < end and (value := figure_of(metric, one)) is not None
        ]
        if inside:
            values = [value for one, value in inside if is_calm(one)] or [value for _, value in inside]
            found.append((begin, inside[-1][0].observed_at, float(np.median(values))))
    return found


def differences(before: Observation, after: Observation) -> tuple[str, ...]:
    """What kvray records of the surroundings of two observations, and what is not the same: `torch 2.11.0 → 2.12.0`."""
    names = sorted({*before.engine_versions, *after.engine_versions})
    pairs: list[tuple[str, str | None, str | None]] = [
        *((name, before.engine_versions.get(name), after.engine_versions.get(name)) for name in names),
        ("driver", before.driver_version, after.driver_version),
        ("Python", before.python_version, after.python_version),
        ("kvray", before.kvray_version, after.kvray_version),
        ("kernels", before.kernels, after.kernels),
        *_anchor_pairs(before.anchor, after.anchor),
        *_variable_pairs(before.variables, after.variables),
        ("device", before.device_name, after.device_name),
        ("host", before.host or None, after.host or None),
    ]
    told = [f"{name} {was or 'none'} → {now or 'none'}" for name, was, now in pairs if was != now]
    if before.hardware != after.hardware and before.device_name == after.device_name:
        told.append("the machine's hardware")
    return tuple(map(formats.clean_line, told))


def _anchor_pairs(before: str | None, after: str | None) -> Iterator[tuple[str, str | None, str | None]]:
    """The threads that it took and that the engine is given; then what else the anchor was."""
    was, now = (_CPU_ANCHOR.fullmatch(one or "") for one in (before, after))
    if was is None or now is None:
        yield "anchor", before, after
        return
    yield "threads:", was[1], now[1]
    yield "anchor:", was[2], now[2]


def _variable_pairs(
    before: Mapping[str, str] | None, after: Mapping[str, str] | None
) -> Iterator[tuple[str, str | None, str | None]]:
    """Nothing where an observation does not know them."""
    if before is None or after is None:
        return
    for name in sorted({*before, *after}):
        yield f"{name}:", before.get(name, "not set"), after.get(name, "not set")


def around(at: dt.datetime, observations: Sequence[Observation]) -> tuple[list[Observation], list[Observation]]:
    """The measured observations before a change point, and those from it on."""
    measured = [one for one in observations if one.processes > 0]
    return [one for one in measured if one.observed_at < at], [one for one in measured if one.observed_at >= at]


def _moments_of_levels(metric: ComparedMetric | None, observations: Sequence[Observation]) -> set[dt.datetime]:
    """When new levels began, as the standing after the last observation tells."""
    try:
        standing = json.loads(observations[-1].standing)["machine" if metric is None else metric.value]
        starts = frozenset(standing["starts"])
    except (ValueError, KeyError, TypeError):
        return set()
    return {one.observed_at for one in observations if one.observation_id in starts}
