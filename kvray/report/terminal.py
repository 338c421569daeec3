"""The report for a terminal of 80 columns or more: the verdict, the ranking, what failed. Plain text in a pipe."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvray.ratios import SAME_WITHIN
from kvray.report import formats
from kvray.report.info import ReportInfo
from kvray.report.listing import StatusGroup
from kvray.report.missed import MissedRow
from kvray.report.rows import APART, APART_TEXT, UNPAIRED, Row
from kvray.report.verdict import Tone

MISSED_TITLE = "Measured, misses a limit (figures are means over the cells; the worst cell counts)"
MISS_MARK = " ✗"
MAX_LISTED = 3
"""Failures shown per status; the files have them all."""
MAX_RANKED = 200
"""Rows of the ranking that are shown, and the baseline's."""
_TONES = {Tone.GOOD: "bold green", Tone.NEUTRAL: "bold", Tone.DOUBTFUL: "bold yellow", Tone.FAILED: "bold yellow"}


def render_terminal(info: ReportInfo) -> RenderableType:
    """Print it with `rich.console.Console().print(...)`. Outside strings are never read as markup."""
    return Group(*_parts(info))


def _parts(info: ReportInfo) -> Iterator[RenderableType]:
    yield Text(info.title, style="bold")
    yield Text(info.subtitle, style="dim")
    yield Text()
    yield Text(info.headline.sentence, style=_TONES[info.headline.tone])
    for note in info.headline.notes:
        yield Text(f"Note: {note}", style="yellow")
    if info.headline.confidence:
        yield Text(info.headline.confidence)
    if info.rows:
        yield Text()
        yield _ranking(info)
        if hidden := len(info.rows) - len(_shown(info.rows)):
            yield Text(f"and {formats.count(hidden)} more, which ranking.parquet and the report have", style="dim")
    if info.engines:
        yield Text("\nBest of each engine", style="bold")
        yield from (Padding(Text(f"{one.engine}: {one.sentence}"), (0, 0, 0, 2)) for one in info.engines)
    if info.missed:
        yield Text(f"\n{MISSED_TITLE}", style="bold")
        yield _missed(info.missed)
    yield from _unranked(info.groups)
    yield Text(info.counts.sentence, style="dim")


def _ranking(info: ReportInfo) -> Table:
    table = new_table()
    table.padding = 0  # one blank between columns: in 80 of them a label takes what is left
    table.add_column("#", justify="right")
    if info.ranked_engines:
        table.add_column("engine", no_wrap=True)
    table.add_column("candidate", overflow="fold", ratio=1)
    for name in ("score", "TTFT\nms", "tok/s", "peak\nMiB"):
        table.add_column(name, justify="right", no_wrap=True)
    has_gains = any(row.gain is not None and not row.is_baseline for row in info.rows)
    has_break_even = any(row.break_even_order is not None for row in info.rows)
    more = (*(("TTFT\nspeed", "tok/s\nspeed") if has_gains else ()), *(("break-\neven",) if has_break_even else ()))
    for name in more:
        table.add_column(name, justify="right", no_wrap=True)
    if more:
        table.caption = _legend(info.rows)
        table.caption_justify = "left"
    for row in _shown(info.rows):
        gains = _gain(row.ttft_gain, row.ttft_mark), _gain(row.throughput_gain, row.throughput_mark)
        cells = (*gains, row.break_even)[: len(more)]
        table.add_row(
            str(row.rank),
            *([row.engine] if info.ranked_engines else []),
            _label(row, has_engine=bool(info.ranked_engines)),
            f"{formats.score(row.score)}{row.score_mark}",
            formats.quantity(row.ttft_ms),
            formats.quantity(row.decode_tok_s),
            formats.quantity(row.peak_mib),
            *cells,
            style="bold" if row.is_winner else "",
        )
    return table


def _shown(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return tuple(row for row in rows if row.rank <= MAX_RANKED or row.is_baseline)


def _legend(rows: tuple[Row, ...]) -> str:
    lines = ["speed: compared with the baseline; 0.33× takes three times as long"]
    if any(row.gain is not None and row.gain.pairs for row in rows):
        lines.append("score, TTFT, tok/s: of all processes; speed: of the confirming rounds alone")
    if any(row.is_unpaired for row in rows):
        lines.append(f"{UNPAIRED} in no confirming round, so compared by all its processes")
    if any(row.score_is_apart or row.ttft_is_apart or row.throughput_is_apart for row in rows):
        lines.append(f"{APART} {APART_TEXT}")
    if any(row.break_even_order is not None for row in rows):
        lines.append("break-even: generated tokens that make up for a longer load and warm-up")
    return "\n".join(lines)


def new_table() -> Table:
    """The style of kvray's tables in a terminal: a rule under the header and nothing else."""
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, expand=True)


def _label(row: Row, *, has_engine: bool) -> Text:
    """Without the engine's name where that has a column."""
    label = Text(row.label.removeprefix(f"{row.engine}:") if has_engine else row.label)
    if row.is_baseline:
        label.append(" baseline", style="yellow")
    if row.is_tied and not row.is_winner:
        label.append(" tied", style="dim")
    return label


def _gain(value: float | None, mark: str) -> Text:
    text = f"{formats.speed_gain(value)}{mark}"
    if value is None or abs(value) < SAME_WITHIN:
        return Text(text, style="dim")
    return Text(text, style="green" if value > 0 else "red")


def _missed(rows: tuple[MissedRow, ...]) -> Table:
    table = new_table()
    table.padding = (0, 1, 0, 0)
    table.add_column("candidate", overflow="fold", ratio=2)
    for name in ("TTFT\nms", "tok/s", "peak\nMiB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("misses", overflow="fold", ratio=3)
    for row in rows:
        label = Text(row.label)
        if row.is_baseline:
            label.append(" baseline", style="yellow")
        table.add_row(
            label,
            _held_against(row, row.ttft_ms, "max_ttft_ms"),
            _held_against(row, row.decode_tok_s, "min_decode_tok_s"),
            _held_against(row, row.peak_mib, "max_peak_mib"),
            Text(row.misses),
        )
    return table


def _held_against(row: MissedRow, value: float | None, limit_name: str) -> Text:
    """The figure; marked where the limit on it is missed."""
    is_missed = limit_name in row.missed and value is not None
    return Text(f"{formats.quantity(value)}{MISS_MARK if is_missed else ''}", style="red" if is_missed else "")


def _unranked(groups: tuple[StatusGroup, ...]) -> Iterator[RenderableType]:
    shown = [group for group in groups if group.is_failure or group.status == "ok"]
    if shown:
        yield Text()
    for group in shown:
        yield Text(f"{group.title} ({formats.count(group.count)})", style="bold red" if group.is_failure else "bold")
        for item in group.items[:MAX_LISTED]:
            yield Padding(Text(f"{formats.listed(item.labels)}: {item.reason}"), (0, 0, 0, 2))
        if len(group.items) > MAX_LISTED:
            yield Padding(Text(f"and {len(group.items) - MAX_LISTED} more reasons", style="dim"), (0, 0, 0, 2))
    yield Text()
