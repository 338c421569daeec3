"""The charts as plotly's JSON: plain data, no plotly needed to compute or test them.

Backgrounds are transparent and colours stand on light and dark; the stylesheet colours the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvray.report import formats
from kvray.report.info import ReportInfo
from kvray.report.rows import Row

WINNER, BASELINE, FRONT, OTHER = "#0f9d8a", "#d98324", "#5b7fd1", "#98a3b3"
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")
"""Signs of the engines in the scatter, in the order of the ranking; further ones have the last."""
MAX_BARS = 16
GRID = "rgba(128,136,148,0.22)"
"""Colour of lines that only help to read."""
_ALIKE = 0.02
"""Peaks that differ by a smaller share of the largest are drawn in one size."""
_LOG_FROM = 5.0
"""An axis whose values span more than this factor is logarithmic, else one slow candidate hides the others."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One chart.

    Attributes:
        name: id in the page.
        caption: what it shows and how to read it.
        height_px: of the drawing.
        plot: `data` and `layout` as `Plotly.newPlot` takes them.
    """

    name: str
    title: str
    caption: str
    height_px: int
    plot: dict[str, Any]


def bar_figures(info: ReportInfo) -> tuple[Figure, ...]:
    """First token, throughput and memory of the best candidates, in ranking order; empty with fewer than two."""
    if len(info.rows) < 2:
        return ()
    rows = _shown(info.rows)
    bars = (
        _bars(rows, "ttft", "First token", "ms, lower is better", lambda row: row.ttft_ms),
        _bars(rows, "throughput", "Throughput", "tok/s, higher is better", lambda row: row.decode_tok_s),
        _bars(rows, "memory", "Peak memory", "MiB, lower is better", lambda row: row.peak_mib),
    )
    return tuple(figure for figure in bars if figure is not None)


def scatter_figure(info: ReportInfo) -> Figure | None:
    """First token against throughput, memory as size; `None` with fewer than two candidates."""
    if len(info.rows) < 2:
        return None
    kinds: list[tuple[str, str, list[Row]]] = [
        ("other", OTHER, [row for row in info.rows if _colour(row) == OTHER]),
        ("Pareto front", FRONT, [row for row in info.rows if _colour(row) == FRONT]),
        ("baseline", BASELINE, [row for row in info.rows if _colour(row) == BASELINE]),
        ("winner", WINNER, [row for row in info.rows if _colour(row) == WINNER]),
    ]
    peaks = [row.peak_mib for row in info.rows]
    has_line = len(info.front) > 1
    size, symbols = _marker_size(peaks), _symbols(info)
    data = [
        *_front_line(info.front),
        *(_points(*kind, size=size, symbols=symbols) for kind in kinds if kind[2]),
        *(_legend_entry(name, symbol) for name, symbol in symbols.items()),
    ]
    layout = {
        **plain_layout(height_px=440),
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "showlegend": bool(symbols),
        **(
            {"legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "itemclick": False}} if symbols else {}
        ),
        "xaxis": _axis("first token, ms (left is better)", [row.ttft_ms for row in info.rows]),
        "yaxis": _axis("throughput, tok/s (up is better)", [row.decode_tok_s for row in info.rows]),
    }
    return Figure(
        name="pareto",
        title="Trade-offs",
        caption=(
            f"Each point is a candidate, numbered by rank{_size_text(peaks)}.{_symbol_text(symbols)}"
            " The Pareto front is over first token, throughput and memory"
            f"{'; the dotted line joins those that nothing beats in the first two' if has_line else ''}."
        ),
        height_px=440,
        plot={"data": data, "layout": layout},
    )


def _shown(rows: Sequence[Row]) -> list[Row]:
    """The first `MAX_BARS`, and the baseline wherever it is."""
    return [row for index, row in enumerate(rows) if index < MAX_BARS or row.is_baseline]


def _bars(
    rows: Sequence[Row], name: str, title: str, caption: str, pick: Callable[[Row], float | None]
) -> Figure | None:
    known = [(row, value) for row in rows if (value := pick(row)) is not None]
    if not known:
        return None
    places = list(range(len(known)))
    height_px = 38 * len(known) + 16
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [value for _, value in known],
        "y": places,
        "width": 0.36,
        "marker": {"color": [_colour(row) for row, _ in known]},
        "text": [formats.quantity(value) for _, value in known],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertext": [_hover(row) for row, _ in known],
        "hoverinfo": "text",
    }
    layout = {
        **plain_layout(height_px=height_px),
        "margin": {"l": 0, "r": 0, "t": 16, "b": 0},
        "showlegend": False,
        "xaxis": {"range": [0, 1.16 * max(value for _, value in known)], "visible": False, "fixedrange": True},
        "yaxis": {"range": [len(known) - 0.5, -0.6], "visible": False, "fixedrange": True},
        "annotations": [_bar_label(place, row) for place, (row, _) in zip(places, known, strict=True)],
    }
    return Figure(
        name=name, title=title, caption=caption, height_px=height_px, plot={"data": [trace], "layout": layout}
    )


def _bar_label(place: int, row: Row) -> dict[str, Any]:
    """The label above its bar: it fits a phone, where a margin of labels would leave no room for bars."""
    return {
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": place,
        "yanchor": "bottom",
        "yshift": 6,
        "showarrow": False,
        "align": "left",
        "text": f"{row.rank}. {escaped(row.label)}",
        "font": {"size": 11},
    }


def _symbols(info: ReportInfo) -> dict[str, str]:
    """The symbol of each engine; empty where there is one engine."""
    return {name: SYMBOLS[min(place, len(SYMBOLS) - 1)] for place, name in enumerate(info.ranked_engines)}


def _symbol_text(symbols: Mapping[str, str]) -> str:
    return " The shape of a point is its engine." if symbols else ""


def _legend_entry(engine: str, symbol: str) -> dict[str, Any]:
    """A point that is nowhere, for the legend."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": escaped(engine),
        "x": [None],
        "y": [None],
        "marker": {"symbol": symbol, "color": OTHER, "size": 11},
        "hoverinfo": "skip",
    }


def _points(
    name: str,
    colour: str,
    rows: Sequence[Row],
    *,
    size: Callable[[float | None], float],
    symbols: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": name,
        "x": [row.ttft_ms for row in rows],
        "y": [row.decode_tok_s for row in rows],
        "text": [str(row.rank) for row in rows],
        "textposition": ["top center" if row.rank % 2 else "bottom center" for row in rows],
        "textfont": {"size": 11},
        "cliponaxis": False,
        "showlegend": False,
        "marker": {
            **({"symbol": [symbols[row.engine] for row in rows]} if symbols else {}),
            "color": colour,
            "size": [size(row.peak_mib) for row in rows],
            "opacity": 0.85,
            "line": {"width": 0},
        },
        "hovertext": [_hover(row) for row in rows],
        "hoverinfo": "text",
    }


def _front_line(front: Sequence[tuple[float, float]]) -> Iterator[dict[str, Any]]:
    """The dotted line, where there are two points to join."""
    if len(front) < 2:
        return
    yield {
        "type": "scatter",
        "mode": "lines",
        "name": "best of both axes",
        "x": [ttft_ms for ttft_ms, _ in front],
        "y": [tok_s for _, tok_s in front],
        "line": {"color": FRONT, "width": 1.5, "dash": "dot", "shape": "hv"},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _marker_size(peaks: Sequence[float | None]) -> Callable[[float | None], float]:
    """Areas in proportion to where a peak lies between the least and the most; 12 px where memory is not known, or
    is the same for all."""
    known = [peak for peak in peaks if peak is not None]
    least, most = (min(known), max(known)) if known else (0.0, 0.0)

    def size(peak: float | None) -> float:
        if peak is None or _are_alike(peaks):
            return 12.0
        return round(math.sqrt(9.0**2 + (26.0**2 - 9.0**2) * (peak - least) / (most - least)), 1)

    return size


def _size_text(peaks: Sequence[float | None]) -> str:
    if all(peak is None for peak in peaks):
        return ""
    return "; all need nearly the same memory" if _are_alike(peaks) else "; a larger one needs more memory"


def _are_alike(peaks: Sequence[float | None]) -> bool:
    """Whether the peaks, as far as they are known, differ by less than `_ALIKE`."""
    known = [peak for peak in peaks if peak is not None]
    return not known or max(known) - min(known) <= _ALIKE * max(known)


def _axis(title: str, values: Sequence[float]) -> dict[str, Any]:
    axis: dict[str, Any] = {
        "title": {"text": title, "font": {"size": 12}},
        "gridcolor": GRID,
        "zeroline": False,
        "automargin": True,
        "nticks": 7,
    }
    if max(values) > _LOG_FROM * min(values):
        ticks = _log_ticks(min(values), max(values))
        return {**axis, "type": "log", "tickvals": ticks, "ticktext": [_round_number(tick) for tick in ticks]}
    return axis


def _log_ticks(least: float, most: float) -> list[float]:
    """1, 2 and 5 of each power of ten, from below `least` to above `most`; only 1 where the values span thousands.

    Plotly's own labels between the powers are single digits, of which nobody can tell how much they stand for.
    """
    steps = (1, 2, 5) if most < 1000 * least else (1,)
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    first = max(place for place, tick in enumerate(ticks) if tick <= least)
    last = min(place for place, tick in enumerate(ticks) if tick >= most)
    return ticks[first : last + 1]


def _round_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def plain_layout(*, height_px: int) -> dict[str, Any]:
    """What all charts have in common."""
    return {
        "height": height_px,
        "autosize": True,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif', "size": 12},
        "separators": ".,",
        "hoverlabel": {"align": "left"},
        "dragmode": False,
    }


def _colour(row: Row) -> str:
    if row.is_winner:
        return WINNER
    if row.is_baseline:
        return BASELINE
    return FRONT if row.on_pareto_front else OTHER


def _hover(row: Row) -> str:
    return "<br>".join(
        (
            f"<b>{escaped(row.label)}</b>",
            f"first token {formats.quantity(row.ttft_ms)} ms",
            f"{formats.quantity(row.decode_tok_s)} tok/s",
            f"peak {formats.quantity(row.peak_mib)} MiB",
        )
    )


def escaped(text: str) -> str:
    """Plotly reads a few HTML tags in text; entities are shown as the characters they stand for."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
