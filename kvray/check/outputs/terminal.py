"""A check for a terminal of 80 columns or more: the verdict, what differs, each metric. Plain text in a pipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvray.analysis.comparison import ComparedMetric, Verdict
from kvray.check.outputs import wording
from kvray.check.result import CheckedCandidate, CheckResult
from kvray.ratios import MISSING
from kvray.report import formats
from kvray.report.terminal import new_table

MOST_SHOWN_WHOLE = 3
"""With more candidates, those that pass without a gain are named and not shown metric by metric."""
_ROWS = {ComparedMetric.TTFT: "TTFT ms", ComparedMetric.DECODE: "decode tok/s", ComparedMetric.MEMORY: "peak MiB"}
"""As short as the columns of a ranking."""
_STYLES = {Verdict.PASS: "bold green", Verdict.FAIL: "bold red", Verdict.INCONCLUSIVE: "bold yellow"}


def render_terminal(result: CheckResult) -> RenderableType:
    """Print it with `rich.console.Console().print(...)`. Outside strings are never read as markup."""
    return Group(*_parts(result))


def _parts(result: CheckResult) -> Iterator[RenderableType]:
    yield Text(wording.headline(result), style=_STYLES[result.verdict])
    if (would_take := wording.would_take(result)) is not None:
        yield Text(would_take)
    yield from (Text(f"- {text}") for text in wording.own_reasons(result))
    yield Text(wording.about(result), style="dim")
    if result.differences:
        yield Text("\nWhat differs", style="bold")
        yield from (_indented(text) for text in wording.differences(result))
    whole, named = _shown(result)
    for one in whole:
        yield from _candidate(result, one)
    if named:
        yield Text(f"\nPASS: {formats.plural(len(named), f'more {wording.unit(result)}')}", style=_STYLES[Verdict.PASS])
        yield from (_indented(": ".join((wording.name_of(one), *_remark(one)))) for one in named)


def _remark(candidate: CheckedCandidate) -> Sequence[str]:
    """What differs and is no fault, such as outputs that moved within their tolerance."""
    return [wording.outside("; ".join(candidate.differences))] if candidate.differences else []


def _shown(result: CheckResult) -> tuple[list[CheckedCandidate], list[CheckedCandidate]]:
    """Those that are shown metric by metric, the worst first, and those that are only named."""
    order = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)
    ordered = sorted(result.candidates, key=lambda one: order.index(one.verdict))
    if len(ordered) <= MOST_SHOWN_WHOLE:
        return ordered, []
    quiet = [one for one in ordered if one.verdict is Verdict.PASS and not wording.gains(one)]
    return [one for one in ordered if one not in quiet], quiet


def _candidate(result: CheckResult, candidate: CheckedCandidate) -> Iterator[RenderableType]:
    head = Text("\n")
    head.append(candidate.verdict.upper(), style=_STYLES[candidate.verdict])
    head.append(f"  {wording.name_of(candidate)}", style="bold")
    failed = candidate.failed_trials
    head.append(f"  {wording.rounds_text(candidate)}", style="dim")
    head.append(f", {formats.plural(failed, 'failed measurement')}" if failed else "", style="yellow")
    yield head
    yield from (_indented(text) for text in wording.notes(result, candidate))
    yield from (_indented(text) for text in wording.told_differences(result, candidate))
    if wording.shown_metrics(candidate):
        yield Padding(_metrics(candidate), (0, 0, 0, 2))


def _metrics(candidate: CheckedCandidate) -> Table:
    table = new_table()
    table.expand = False
    table.add_column("")
    for name in ("before", "now", "change", "95 % interval", "margin"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for one in wording.shown_metrics(candidate):
        table.add_row(
            _ROWS[one.metric],
            formats.quantity(one.before),
            formats.quantity(one.now),
            MISSING if one.change is None else wording.change_text(one.change.value),
            wording.interval_text(one.change),
            wording.margin_text(one.margin),
            Text(wording.verdict_word(one), style="" if one.verdict is None else _STYLES[one.verdict]),
        )
    return table


def _indented(text: str) -> Padding:
    return Padding(Text(text), (0, 0, 0, 2))
