"""The charts of a watch's page as plotly's JSON: each metric over time, with its level, its change points, and the
machine's own speed below it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from kvray.analysis.comparison import ComparedMetric
from kvray.check.watch.events import EventKind, Observation, ObservationRole, WatchEvent
from kvray.check.watch.observed import change_points, figure_of, is_calm, levels, remark
from kvray.ratios import amount_sign
from kvray.report import formats
from kvray.report.figures import BASELINE, FRONT, GRID, OTHER, WINNER, Figure, escaped, plain_layout

WORSE = "#d64a5b"
_HEIGHT_PX = 380
_HEIGHT_ALONE_PX = 280
_MOST_LABELS = 12
"""Change points that have a label; with more they would lie on each other, and hovering tells the same."""
_MANY = 300
_LEAST_SPAN = 0.02
"""An axis shows at least this share of its values to each side, so that noise of 0.1 per cent looks small."""
_RATES: tuple[tuple[str, str, Callable[[Observation], float | None]], ...] = (
    ("copying memory", FRONT, lambda one: one.copy_gb_s),
    ("matrix multiplication", BASELINE, lambda one: one.matmul_gflop_s),
)
_WITH_MACHINE = (ComparedMetric.TTFT, ComparedMetric.DECODE)
"""How fast the machine is does not touch what memory a configuration takes."""


def charts(observations: Sequence[Observation]) -> tuple[Figure, ...]:
    """One chart for each metric that was measured at least once."""
    return tuple(
        _chart(metric, observations)
        for metric in ComparedMetric
        if any(figure_of(metric, one) is not None for one in observations)
    )


def _chart(metric: ComparedMetric, observations: Sequence[Observation]) -> Figure:
    machine = list(_machine(observations)) if metric in _WITH_MACHINE else []
    points = change_points(metric, observations)
    height_px = _HEIGHT_PX if machine else _HEIGHT_ALONE_PX
    better = "lower" if metric.worse_is_more else "higher"
    low, high = _bounds(metric, observations)
    bottom = low + 0.04 * (high - low)
    layout = {
        **plain_layout(height_px=height_px),
        "dragmode": "zoom",
        "hovermode": "closest",
        "meta": {"linked": "time"},
        "margin": {"l": 56, "r": 8, "t": 26, "b": 8},
        "showlegend": False,
        "xaxis": _time_axis(observations, anchor="y2" if machine else "y"),
        "yaxis": {**_value_axis(low, high), "domain": [0.34, 1] if machine else [0, 1]},
        "shapes": [
            *(_mark(one) for one in points),
            *({**_mark(one), "yref": "y2 domain"} for one in change_points(None, observations) if machine),
        ],
        "annotations": [_label(one) for one in points[-_MOST_LABELS:]],
    }
    if machine:
        layout["yaxis2"] = {
            **_value_axis(*_machine_bounds(machine)),
            "domain": [0, 0.2],
            "ticksuffix": " %",
            "nticks": 3,
        }
        layout["annotations"] = [*layout["annotations"], _machine_title()]
    return Figure(
        name=f"watch-{metric.value}",
        title=metric.title[0].upper() + metric.title[1:],
        caption=f"{metric.unit}, {better} is better",
        height_px=height_px,
        plot={
            "data": [
                *_points(metric, observations, bottom),
                *_levels(metric, observations),
                *machine,
            ],
            "layout": layout,
        },
    )


def _points(metric: ComparedMetric, observations: Sequence[Observation], bottom: float) -> Iterator[dict[str, Any]]:
    """Calm, disturbed and out-of-turn observations, and those that measured nothing, at the bottom."""
    size = 4 if len(observations) > _MANY else 7
    measured = [one for one in observations if figure_of(metric, one) is not None]
    regular = [one for one in measured if is_calm(one) and one.role is not ObservationRole.CONFIRM]
    again = [one for one in measured if is_calm(one) and one.role is ObservationRole.CONFIRM]
    disturbed = [one for one in measured if not is_calm(one)]
    missing = [one for one in observations if one.processes == 0]
    kinds: list[tuple[str, list[Observation], dict[str, Any]]] = [
        ("disturbed", disturbed, {"symbol": "circle-open", "color": OTHER, "size": size}),
        ("observation", regular, {"symbol": "circle", "color": WINNER, "size": size, "opacity": 0.75}),
        ("after a suspicion", again, {"symbol": "diamond", "color": FRONT, "size": size + 1}),
        ("not measured", missing, {"symbol": "x", "color": WORSE, "size": 7}),
    ]
    for name, found, marker in kinds:
        if found:
            yield {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [_moment(one.observed_at) for one in found],
                "y": [bottom if (value := figure_of(metric, one)) is None else value for one in found],
                "marker": marker,
                "cliponaxis": False,
                "hovertext": [_hover(metric, one) for one in found],
                "hoverinfo": "text",
            }


def _levels(metric: ComparedMetric, observations: Sequence[Observation]) -> Iterator[dict[str, Any]]:
    found = levels(metric, observations)
    xs: list[str | None] = []
    ys: list[float | None] = []
    for begin, end, value in found:
        xs += [_moment(begin), _moment(end), None]
        ys += [value, value, None]
    if found:
        yield {
            "type": "scatter",
            "mode": "lines",
            "name": "level",
            "x": xs,
            "y": ys,
            "line": {"color": OTHER, "width": 2},
            "hoverinfo": "skip",
        }


def _machine(observations: Sequence[Observation]) -> Iterator[dict[str, Any]]:
    """The anchor's rates, each as a percentage of its median; those of another computation cannot be compared."""
    for name, colour, rate in _RATES:
        anchor = observations[-1].anchor
        found = [(one, value) for one in observations if one.anchor == anchor and (value := rate(one)) is not None]
        if found:
            usual = float(np.median([value for _, value in found]))
            yield {
                "type": "scatter",
                "mode": "lines+markers" if len(found) <= _MANY else "lines",
                "name": name,
                "x": [_moment(one.observed_at) for one, _ in found],
                "y": [round(100 * value / usual, 3) for _, value in found],
                "yaxis": "y2",
                "line": {"color": colour, "width": 1.2},
                "marker": {"size": 3},
                "hovertext": [
                    f"{name}: {100 * value / usual:.1f} % of its median<br>{formats.timestamp(one.observed_at)}"
                    for one, value in found
                ],
                "hoverinfo": "text",
            }


def _hover(metric: ComparedMetric, one: Observation) -> str:
    value = figure_of(metric, one)
    each = {
        ComparedMetric.TTFT: one.ttft_ms_each,
        ComparedMetric.DECODE: one.decode_tok_s_each,
        ComparedMetric.MEMORY: one.peak_mib_each,
    }[metric]
    lines = [f"<b>{formats.timestamp(one.observed_at)}</b>"]
    lines += [f"{formats.quantity(value)} {metric.unit}"] if value is not None else []
    lines += [f"processes: {', '.join(map(formats.quantity, each[:8]))}"] if len(each) > 1 else []
    lines += [escaped(remark(one)[:160])] if remark(one) else []
    return "<br>".join(lines)


def _mark(event: WatchEvent) -> dict[str, Any]:
    """A line through the whole chart, in the colour of what happened."""
    return {
        "type": "line",
        "x0": _at(event),
        "x1": _at(event),
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": _colour(event), "width": 1.5, "dash": "dot"},
    }


def _label(event: WatchEvent) -> dict[str, Any]:
    point = event.change_point
    change = amount_sign(1 + point.change.value) if point else ""
    return {
        "x": _at(event),
        "y": 1,
        "yref": "paper",
        "yanchor": "bottom",
        "showarrow": False,
        "text": "recovered" if event.kind is EventKind.RECOVERED else f"<b>{change}</b>",
        "font": {"size": 11},
    }


def _machine_title() -> dict[str, Any]:
    return {
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": 0.2,
        "yref": "paper",
        "yanchor": "bottom",
        "showarrow": False,
        "text": "the machine’s own speed (anchor)",
        "font": {"size": 11},
    }


def _colour(event: WatchEvent) -> str:
    return {EventKind.CONFIRMED: WORSE, EventKind.RECOVERED: WINNER, EventKind.MACHINE: BASELINE}.get(event.kind, OTHER)


def _time_axis(observations: Sequence[Observation], *, anchor: str) -> dict[str, Any]:
    first, last = observations[0].observed_at, observations[-1].observed_at
    pad = (last - first) * 0.05 or dt.timedelta(hours=3)
    days = [(7, "week"), (30, "month"), (365, "year")]
    buttons = [
        {"count": count, "step": "day", "stepmode": "backward", "label": label}
        for count, label in days
        if last - first > dt.timedelta(days=count)
    ]
    axis: dict[str, Any] = {
        "type": "date",
        "range": [_moment(first - pad), _moment(last + pad)],
        "anchor": anchor,
        "gridcolor": GRID,
        "automargin": True,
        "nticks": 8,
    }
    if buttons:
        axis["rangeselector"] = {
            "buttons": [*buttons, {"step": "all", "label": "all"}],
            "bgcolor": GRID,
            "activecolor": "rgba(15,157,138,0.45)",
            "x": 1,
            "xanchor": "right",
            "y": 1.02,
            "font": {"size": 11},
        }
    return axis


def _value_axis(low: float, high: float) -> dict[str, Any]:
    return {
        "range": [low, high],
        "gridcolor": GRID,
        "zeroline": False,
        "nticks": 5,
        "fixedrange": True,
    }


def _bounds(metric: ComparedMetric, observations: Sequence[Observation]) -> tuple[float, float]:
    """An axis that shows all calm values; what was disturbed may lie beyond it, up to twice its height."""
    calm = [value for one in observations if is_calm(one) and (value := figure_of(metric, one)) is not None]
    values = calm or [value for one in observations if (value := figure_of(metric, one)) is not None]
    middle = float(np.median(values))
    low, high = min(*values, middle * (1 - _LEAST_SPAN)), max(*values, middle * (1 + _LEAST_SPAN))
    others = [value for one in observations if (value := figure_of(metric, one)) is not None]
    room = high - low
    low, high = max(min(low, *others), low - room), min(max(high, *others), high + room)
    return low - 0.08 * (high - low), high + 0.08 * (high - low)


def _machine_bounds(traces: Sequence[dict[str, Any]]) -> tuple[float, float]:
    values = [value for one in traces for value in one["y"]]
    low, high = np.percentile(values, [0.5, 99.5]).tolist()
    return min(low, 97.0) - 1, max(high, 103.0) + 1


def _machine_ticks(low: float, high: float) -> list[int]:
    """100 % and one round number on each side."""
    step = max((one for one in (2, 5, 10, 20, 50) if one <= min(100 - low, high - 100)), default=2)
    return [100 - step, 100, 100 + step]


def _at(event: WatchEvent) -> str:
    return _moment(event.at if event.change_point is None else event.change_point.at)


def _moment(at: dt.datetime) -> str:
    """As plotly reads it, in UTC."""
    return f"{at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}"
