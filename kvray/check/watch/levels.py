"""The history as series: what each metric and the anchor measured at each sitting, and how far a step in them is sure.

Pure functions over observations. Logarithms are turned so that more is worse.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvray.analysis.change_points import Array, Cleaned, Series, Step, clean, find_step
from kvray.analysis.comparison import ComparedMetric, SideSamples, compare
from kvray.analysis.intervals import Interval
from kvray.store.history import Observation, ObservationRole
from kvray.workload import Cell

MOST_BEFORE = 40
"""Sittings before a step that its size is measured against: ten days, four times a day."""
MOST_ROWS = 280
_EACH = {
    ComparedMetric.TTFT: "ttft_ms_each",
    ComparedMetric.DECODE: "decode_tok_s_each",
    ComparedMetric.MEMORY: "peak_mib_each",
}
_TYPICAL_SD = {ComparedMetric.TTFT: 0.03, ComparedMetric.DECODE: 0.02, ComparedMetric.MEMORY: 0.004, None: 0.03}
_LEAST_SD = {ComparedMetric.TTFT: 0.005, ComparedMetric.DECODE: 0.005, ComparedMetric.MEMORY: 0.002, None: 0.005}
_ONE_CELL = (Cell(1, 1, 1),)
"""Observations hold means over all cells."""
_MOSTLY = 0.5

SPEEDS = (ComparedMetric.TTFT, ComparedMetric.DECODE)
"""Metrics that a slow machine makes worse."""
Watched = ComparedMetric | None
"""A metric; `None`: the machine, by its anchor."""


@dataclass(frozen=True, kw_only=True)
class Levels:
    """One metric, or the machine, at each sitting that measured it, oldest first.

    Attributes:
        watched: which.
        ids: of the observation that began the sitting.
        series: for the search of steps.
        each: logarithms of each process of a sitting.
        anchor: of the machine's two rates, sittings x 2; nan where not measured.
    """

    watched: Watched
    ids: tuple[str, ...]
    series: Series
    each: tuple[Array, ...]
    anchor: Array

    def before(self, start: int) -> slice:
        """The sittings at the level before the step at `start`."""
        first = max([one for one in self.series.starts if one < start], default=0)
        return slice(max(first, start - MOST_BEFORE), start)


@dataclass(frozen=True, kw_only=True)
class Change:
    """A step, and how sure it is.

    Attributes:
        observation_id: of the first sitting after it.
        size: as a logarithm; more is worse.
        sittings: that it has lasted.
        noise_sds: `size` in standard deviations of what the history itself shows.
        change: now/before - 1 in the metric's unit, with its 95 % interval, the spread between sittings included.
        before, now: levels in the metric's unit; of the machine, geometric means of its two rates.
        machine: by how much the anchor is slower after it, as a logarithm; `None` where that is not known.
        level: logarithm of the level before.
    """

    observation_id: str
    at_s: float
    size: float
    sittings: int
    noise_sds: float
    change: Interval
    before: float
    now: float
    machine: float | None
    level: float

    @property
    def is_worse(self) -> bool:
        """Whether it became slower, or larger."""
        return self.size > 0

    @property
    def is_certain(self) -> bool:
        """Whether the 95 % interval lies on one side of no change."""
        return self.change.low > 0 or self.change.high < 0


def levels_of(rows: Sequence[Observation], watched: Watched, starts: Sequence[str]) -> Levels:
    """The series of `watched` in `rows`, whose level changed at the sittings `starts`."""
    sittings = _sittings(rows[-MOST_ROWS:])
    name = next((one.anchor for one in reversed(rows) if one.anchor is not None), None)
    found = [(sitting, _values(sitting, watched, name)) for sitting in sittings]
    kept = [(sitting, values) for sitting, values in found if len(values)]
    ids = tuple(sitting[0].observation_id for sitting, _ in kept)
    anchor = np.array([_anchor(sitting, name) for sitting, _ in kept]).reshape(-1, 2)
    explains = anchor if watched in SPEEDS else anchor[:, :0]
    return Levels(
        watched=watched,
        ids=ids,
        series=Series(
            at_s=np.array([sitting[0].observed_at.timestamp() for sitting, _ in kept]),
            values=np.array([values.sum() / len(values) for _, values in kept]),
            anchors=explains,
            starts=tuple(sorted({place for one in starts if 0 < (place := bisect_left(ids, one)) < len(ids)})),
            least_sd=_LEAST_SD[watched],
            typical_sd=_TYPICAL_SD[watched],
        ),
        each=tuple(values for _, values in kept),
        anchor=anchor,
    )


def latest_change(levels: Levels) -> Change | None:
    """The step that leads to where `levels` are now; `None` where they are what they were."""
    if not len(levels.series.values):
        return None
    cleaned = clean(levels.series)
    if (step := find_step(cleaned)) is None:
        return None
    # Once more, knowing where: the step is no part of what the week or the anchor teaches.
    apart = clean(replace(levels.series, starts=(*levels.series.starts, step.start)))
    cleaned = replace(
        cleaned, values=(levels.series.values - apart.explained)[cleaned.first :], explained=apart.explained
    )
    step = find_step(cleaned)
    return None if step is None else _change(levels, cleaned, step)


def _change(levels: Levels, cleaned: Cleaned, step: Step) -> Change:
    before, after = levels.before(step.start), slice(step.start, None)
    explained = cleaned.explained
    sides = [_samples(levels, explained, part) for part in (before, after)]
    # The history shows by how much sittings differ on this machine.
    (found,) = compare(*sides, margins={}, session_sd=dict.fromkeys(ComparedMetric, cleaned.sd)).metrics
    size = _sign(levels.watched) * math.log1p(found.change.value)
    counts = len(levels.series.values[before]), len(levels.series.values[after])
    spread = cleaned.sd * math.sqrt(1 / counts[0] + 1 / counts[1])
    return Change(
        observation_id=levels.ids[step.start],
        at_s=float(levels.series.at_s[step.start]),
        size=size,
        sittings=counts[1],
        noise_sds=abs(size) / spread,
        change=found.change,
        before=found.before,
        now=found.now,
        machine=_machine_step(levels.anchor[before], levels.anchor[after]),
        level=float(np.mean((levels.series.values - explained)[before])),
    )


def _samples(levels: Levels, explained: Array, part: slice) -> SideSamples:
    """The processes of these sittings, without what is explained of them, in the metric's own direction."""
    places = range(len(levels.ids))[part]
    column = (levels.watched or ComparedMetric.TTFT).column
    values = np.concatenate([levels.each[place] - explained[place] for place in places])
    logs = np.full((len(values), 1, 3), np.nan)
    logs[:, 0, column] = _sign(levels.watched) * values
    return SideSamples(
        cells=_ONE_CELL,
        logs=logs,
        rounds=np.zeros(len(values), dtype=np.int64),
        sessions=tuple(levels.ids[place] for place in places for _ in levels.each[place]),
        disturbed=np.zeros(len(values), dtype=np.bool_),
    )


def _machine_step(before: Array, after: Array) -> float | None:
    """The step of that one of the two rates which changed more."""
    known = [rows[np.isfinite(rows).all(axis=1)] for rows in (before, after)]
    if not all(map(len, known)):
        return None
    steps = np.mean(known[1], axis=0) - np.median(known[0], axis=0)
    return float(steps[np.argmax(np.abs(steps))])


def _sittings(rows: Sequence[Observation]) -> list[list[Observation]]:
    """Each regular observation with the confirming ones that followed it at once. Disturbed ones are left out, unless
    most are."""
    is_usual = sum(one.disturbed for one in rows) > _MOSTLY * len(rows)
    found: list[list[Observation]] = []
    for one in rows:
        if one.disturbed and not is_usual:
            continue
        if one.role is ObservationRole.CONFIRM and found:
            found[-1].append(one)
        else:
            found.append([one])
    return found


def _values(sitting: Sequence[Observation], watched: Watched, anchor: str | None) -> Array:
    """A logarithm per process; of the machine, per observation that measured `anchor`."""
    if watched is None:
        each = [math.fsum(_anchor([one], anchor)) / 2 for one in sitting]
        return np.array([one for one in each if math.isfinite(one)])
    sign = _sign(watched)
    return np.array([sign * math.log(value) for one in sitting for value in getattr(one, _EACH[watched])])


def _sign(watched: Watched) -> float:
    """1 where more is worse; the machine is measured in rates."""
    return 1.0 if watched is not None and watched.worse_is_more else -1.0


def _anchor(sitting: Sequence[Observation], name: str | None) -> tuple[float, float]:
    """Slowness of copy and matmul; nan for another computation than the anchor `name`: the two cannot be compared."""
    known = [
        (math.log(one.copy_gb_s), math.log(one.matmul_gflop_s))
        for one in sitting
        if one.anchor == name and one.copy_gb_s and one.matmul_gflop_s
    ]
    if not known:
        return math.nan, math.nan
    return -sum(copy for copy, _ in known) / len(known), -sum(matmul for _, matmul in known) / len(known)
