"""Step changes in a series of observations: what the machine and the hour of the week explain is taken out first.

All values are natural logarithms, turned so that more is worse. The steps are found by PELT with an L2 cost, from the
package `ruptures`. Pure functions; `benchmarks/watch.py` chose the constants on simulated years.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvray.extras import Extra

Array = npt.NDArray[np.float64]

PENALTY = 9.0
"""In variances of one observation: a step must explain that much. Lower finds steps sooner and is wrong more often."""
LEAST_BEFORE = 4
"""Observations, before which no step is looked for."""
LEAST_SINCE = 1
"""The same after a step: what the noise is like is known by then, and what passes at once is a level, too."""
MOST_SEGMENT = 120
"""Observations that a step is looked for in: a month, four times a day. What drifts slowly is no step."""
MOST_HISTORY = 240
"""Observations from which pattern and noise are learnt."""
_HOUR_S = 3600.0
_WEEK_H = 168.0
_BIN_H = 6.0
_BINS = int(_WEEK_H / _BIN_H)
_THURSDAY_H = 72.0
"""After Monday 00:00: the epoch was a Thursday."""
_PATTERN_SD = 0.015
"""How far apart the hours of a week are expected to lie, before anything is known."""
_ANCHOR_SD = 0.5
"""How much of the anchor's movement a metric is expected to follow."""
MOST_PASSED_ON = 1.25
"""By how much more than the machine a metric may become slower because of it. What goes beyond is a change of its own,
also where the first slow observation is all that anyone has seen the anchor move."""
_CLIP_SD = 4.0
_EXPECTED_COUNTS = 8.0
"""Observations that `typical_sd` is worth."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One metric over time, oldest first.

    Attributes:
        at_s: Unix time of each observation.
        values: natural logarithms, more is worse.
        anchors: observations x rates: the same of the anchor's rates, nan where not measured; no columns for a
            metric that the machine's speed does not touch.
        starts: indices from which on the level is another one, beside the first.
        least_sd: noise below which none is believed, e.g. 0.005.
        typical_sd: noise that is expected while there are few observations.
    """

    at_s: Array
    values: Array
    anchors: Array
    starts: tuple[int, ...] = ()
    least_sd: float = 0.005
    typical_sd: float = 0.02


@dataclass(frozen=True, kw_only=True)
class Step:
    """The latest step of a series.

    Attributes:
        start: index of the first observation after it.
        size: mean after it less the level before it, as a logarithm; more is worse.
    """

    start: int
    size: float


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A series without what is explained.

    Attributes:
        values: of the observations since the last accepted step, at most `MOST_SEGMENT`.
        explained: what was taken out of each observation of the series.
        first: index in the series of the first of `values`.
        sd: noise of one observation.
        least_before: observations that a step must have before it.
    """

    values: Array
    explained: Array
    first: int
    sd: float
    least_before: int = LEAST_BEFORE


def clean(series: Series) -> Cleaned:
    """`series` since its last accepted step, without what the anchor and the hour of the week explain."""
    explained = _explained(series)
    left = series.values - explained
    first = max(series.starts[-1] if series.starts else 0, len(left) - MOST_SEGMENT)
    sd = _noise_sd(left[-MOST_HISTORY:], series)
    least = LEAST_SINCE if series.starts else LEAST_BEFORE
    return Cleaned(values=left[first:], explained=explained, first=first, sd=sd, least_before=least)


def find_step(cleaned: Cleaned, *, penalty: float = PENALTY) -> Step | None:
    """The step that leads to where the series is now; `None` where it is at its level."""
    values = cleaned.values
    if len(values) <= cleaned.least_before:
        return None
    starts = segment_starts(values, cleaned.sd, penalty=penalty)
    if not starts or starts[-1] < cleaned.least_before:
        return None
    before, after = values[: starts[-1]], values[starts[-1] :]
    size = float(np.mean(after) - np.median(before))
    if size**2 * len(after) < penalty * cleaned.sd**2:  # back at its level, after something that has passed
        return None
    return Step(start=cleaned.first + starts[-1], size=size)


def segment_starts(values: Array, sd: float, *, penalty: float = PENALTY) -> tuple[int, ...]:
    """Indices at which PELT sees another level begin."""
    Extra.WATCH.require("Finding step changes")
    import ruptures  # an extra of its own

    clipped = _without_spikes(values, sd)
    search = ruptures.KernelCPD(kernel="linear", min_size=1).fit(clipped.reshape(-1, 1))
    ends: list[int] = search.predict(pen=penalty * sd**2)
    return tuple(ends[:-1])


def _explained(series: Series) -> Array:
    """What the anchor and the hour of the week explain of each value: a ridge regression on what is left when each
    level is taken out."""
    count = len(series.values)
    recent = slice(max(0, count - MOST_HISTORY), count)
    starts = tuple(start - recent.start for start in series.starts if start > recent.start)
    values = series.values[recent]
    anchors = _filled(series.anchors[recent])
    features = np.column_stack([_week_features(series.at_s), _filled(series.anchors)])
    moving = np.column_stack([_week_features(series.at_s[recent]), anchors])
    at_s = series.at_s[recent]
    target = _without_level(values, at_s, starts)
    centred = _without_level(moving, at_s, starts)
    variance = _noise_sd(target, series) ** 2
    priors = np.array([_PATTERN_SD] * (moving.shape[1] - anchors.shape[1]) + [_ANCHOR_SD] * anchors.shape[1])
    gram = centred.T @ centred / variance + np.diag(priors**-2)
    weights = np.linalg.solve(gram, centred.T @ np.clip(target, *_bounds(target)) / variance)
    kinds = moving.shape[1] - anchors.shape[1]
    weights[kinds:] = np.maximum(weights[kinds:], 0.0)  # nothing becomes faster because the machine is slower
    weights[kinds:] *= MOST_PASSED_ON / max(MOST_PASSED_ON, weights[kinds:].sum())
    fitted: Array = features @ weights
    return fitted - float(np.median(fitted))


def _bounds(target: Array) -> tuple[float, float]:
    limit = _CLIP_SD * max(1e-6, 1.4826 * float(np.median(np.abs(target))))
    return -limit, limit


def _week_features(at_s: Array) -> Array:
    """For each moment: which part of the day, of a working day or a weekend's, and of the week it is (UTC)."""
    hour = (at_s / _HOUR_S + _THURSDAY_H) % _WEEK_H  # 0: Monday 00:00
    slot = (hour // _BIN_H).astype(int)
    part = slot % int(24 / _BIN_H)
    is_weekend = (hour >= 5 * 24).astype(int)
    kinds = 2 * int(24 / _BIN_H)
    return np.column_stack([np.eye(kinds)[part + is_weekend * (kinds // 2)], np.eye(_BINS)[slot]])


def _filled(anchors: Array) -> Array:
    """Where an anchor was not measured, its median stands in: it then explains nothing."""
    if anchors.size == 0:
        return anchors
    with np.errstate(all="ignore"):
        known = np.where(np.isnan(anchors), np.inf, anchors)
        middle = [
            float(np.median(column[np.isfinite(column)])) if np.isfinite(column).any() else 0.0 for column in known.T
        ]
    return np.where(np.isnan(anchors), np.array(middle), anchors)


def _without_level(values: Array, at_s: Array, starts: tuple[int, ...]) -> Array:
    """Each column of `values` less its mean over the week around each moment, within one level."""
    left = np.array(values)
    for first, last in zip((0, *starts), (*starts, len(values)), strict=True):
        part, moments = values[first:last], at_s[first:last]
        low = np.searchsorted(moments, moments - _WEEK_H * _HOUR_S / 2, side="left")
        high = np.searchsorted(moments, moments + _WEEK_H * _HOUR_S / 2, side="left")
        sums = np.concatenate([np.zeros_like(part[:1]), np.cumsum(part, axis=0)])
        counts = np.maximum(high - low, 1).reshape(-1, *[1] * (values.ndim - 1))
        left[first:last] = part - (sums[high] - sums[low]) / counts
    return left


def _noise_sd(values: Array, series: Series) -> float:
    """By the differences of neighbours, which a step hardly changes; with few of them, what is expected counts too."""
    seen = 1.4826 * float(np.median(np.abs(np.diff(values)))) / math.sqrt(2.0) if len(values) > 1 else 0.0
    weight = _EXPECTED_COUNTS / (_EXPECTED_COUNTS + len(values))
    return max(series.least_sd, math.sqrt((1 - weight) * seen**2 + weight * series.typical_sd**2))


def _without_spikes(values: Array, sd: float) -> Array:
    """A value far from its neighbours is moved towards them: one bad moment is no level."""
    padded = np.pad(values, 2, mode="edge")
    middle = np.median(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=1)
    clipped: Array = np.clip(values, middle - _CLIP_SD * sd, middle + _CLIP_SD * sd)
    return clipped
