"""A comparison of two places in words, as tables for a terminal, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvray.analysis.comparison import ComparedMetric, MetricComparison, Verdict
from kvray.analysis.intervals import Interval
from kvray.check.comparing import ComparedCandidate, ComparedPlaces
from kvray.ratios import (
    SAME_WITHIN,
    amount_interval_text,
    amount_sign,
    memory_text,
    speed_interval_text,
    speed_text,
    tok_s_text,
)
from kvray.report import formats
from kvray.report.compare import Comparison as SweepComparison
from kvray.report.compare import render_comparison
from kvray.report.markdown import md_escape
from kvray.report.terminal import new_table

_HEADS = ("metric", "A", "B", "change", "95 %")
_JUDGED_HEADS = ("margin", "verdict")


def sentence(one: ComparedCandidate) -> str:
    """E.g. `B is 12 % faster to first token (+9 % to +15 %), with the same tok/s (−1 % to +1 %).`"""
    told = [_phrase(metric) for metric in one.comparison.metrics]
    if not told:
        return "A and B measured nothing in common."
    first, rest = (told[0], told[1:]) if one.comparison.metrics[0].metric is ComparedMetric.TTFT else (None, told)
    return (
        f"B is {first}{f', with {formats.listed(rest)}' if rest else ''}."
        if first
        else f"B has {formats.listed(rest)}."
    )


def _phrase(one: MetricComparison) -> str:
    """The change of one metric and its interval. Speeds are told as gains in speed, also that to the first token."""
    is_told_apart = abs(one.change.value) < SAME_WITHIN or not one.change.low < 0 < one.change.high
    noise = "" if is_told_apart else " within noise"
    return f"{_change_text(one)}{noise} ({_span(one.metric, one.change)})"


def _change_text(one: MetricComparison) -> str:
    factor = 1 + one.change.value
    if one.metric is ComparedMetric.TTFT:
        return f"{speed_text(1 / factor)} to first token"
    return tok_s_text(factor) if one.metric is ComparedMetric.DECODE else memory_text(factor)


def _span(metric: ComparedMetric, change: Interval) -> str:
    low, high = 1 + change.low, 1 + change.high
    if metric is ComparedMetric.TTFT:
        return speed_interval_text(1 / (1 + change.value), 1 / high, 1 / low)
    return amount_interval_text(1 + change.value, low, high)


def verdict_text(one: ComparedCandidate) -> str:
    """The verdict in a sentence, and what an open one would take."""
    comparison = one.comparison
    if one.verdict is Verdict.PASS:
        return "PASS: nothing is worse than its margin."
    if one.verdict is Verdict.FAIL:
        worse = [metric.metric.title for metric in comparison.metrics if metric.verdict is Verdict.FAIL]
        worse += [f"{cell.metric.title} of {cell.cell.label} alone" for cell in comparison.cells]
        if not worse:
            return f"FAIL: {one.reasons[0].rstrip('.')}." if one.reasons else "FAIL."
        return f"FAIL: {formats.listed(worse)} got worse by more than the margin."
    names = [metric.metric.title for metric in comparison.metrics if metric.verdict is Verdict.INCONCLUSIVE]
    if not names:
        return f"INCONCLUSIVE: {one.reasons[0].rstrip('.')}." if one.reasons else "INCONCLUSIVE."
    more = comparison.more_rounds
    if more is None:
        rest = "More processes would not tell; kvray check --against measures both in turn."
    else:
        rest = f"About {formats.plural(more, 'more process', 'more processes')} a side would tell."
    return f"INCONCLUSIVE: {formats.listed(names)} may be worse than the margin or not. {rest}"


def render_places(compared: ComparedPlaces) -> RenderableType:
    """Print it with `rich.console.Console().print(...)`."""
    return Group(*_parts(compared))


def _parts(compared: ComparedPlaces) -> Iterator[RenderableType]:
    if compared.sweeps is not None:
        yield render_comparison(compared.sweeps, between=tuple(_own_parts(compared)))
        return
    yield Text(f"A  {formats.clean_line(compared.name_a)}", style="bold")
    yield Text(f"B  {formats.clean_line(compared.name_b)}", style="bold")
    yield Text()
    yield from _own_parts(compared)


def _own_parts(compared: ComparedPlaces) -> Iterator[RenderableType]:
    if told := (*compared.machine, *compared.differences):
        yield Text("What differs from A to B:", style="bold yellow")
        yield from (Text(f"- {formats.clean_line(text)}", style="yellow") for text in told)
        yield Text()
    if compared.remarks:
        yield from (Text(formats.clean_line(text), style="bold yellow") for text in compared.remarks)
        yield Text()
    for one in compared.candidates:
        yield from _candidate_parts(one, is_judged=bool(compared.margins))
        yield Text()


def _candidate_parts(one: ComparedCandidate, *, is_judged: bool) -> Iterator[RenderableType]:
    yield Text(_title(one), style="bold")
    yield from (Text(f"- {formats.clean_line(text)}", style="yellow") for text in (*one.differences, *one.reasons))
    yield Text(sentence(one))
    if one.comparison.metrics:
        yield _table(one.comparison.metrics, is_judged=is_judged)
    if one.verdict is not None:
        yield Text(verdict_text(one), style="bold green" if one.verdict is Verdict.PASS else "bold yellow")


def _title(one: ComparedCandidate) -> str:
    if one.label_a == one.label_b:
        return f"{formats.clean_line(one.label_a)} in both"
    return f"{formats.clean_line(one.label_a)} in A, {formats.clean_line(one.label_b)} in B"


def _table(metrics: Sequence[MetricComparison], *, is_judged: bool) -> Table:
    table = new_table()
    for place, head in enumerate(_heads(is_judged=is_judged)):
        table.add_column(head, justify="left" if place == 0 else "right", no_wrap=place > 0)
    for one in metrics:
        table.add_row(*_row(one, is_judged=is_judged))
    return table


def _heads(*, is_judged: bool) -> tuple[str, ...]:
    return (*_HEADS, *_JUDGED_HEADS) if is_judged else _HEADS


def _row(one: MetricComparison, *, is_judged: bool) -> tuple[str, ...]:
    cells = (
        f"{one.metric.title}, {one.metric.unit}",
        formats.quantity(one.before),
        formats.quantity(one.now),
        amount_sign(1 + one.change.value),
        amount_interval_text(1 + one.change.value, 1 + one.change.low, 1 + one.change.high),
    )
    if not is_judged:
        return cells
    return (*cells, "–" if one.margin is None else f"{one.margin * 100:g} %", one.verdict or "–")


def markdown_of(compared: ComparedPlaces) -> str:
    """The same as Markdown, without the table of all candidates of two sweeps."""
    return "\n".join(_markdown_lines(compared)) + "\n"


def _markdown_lines(compared: ComparedPlaces) -> Iterator[str]:
    yield f"**A** {md_escape(compared.name_a)}  "
    yield f"**B** {md_escape(compared.name_b)}"
    warnings = compared.sweeps.warnings if compared.sweeps is not None else ()
    if told := (*compared.machine, *compared.differences, *warnings):
        yield "\n**What differs**\n"
        yield from (f"- {md_escape(text)}" for text in told)
    yield from (f"\n{md_escape(text)}" for text in compared.remarks)
    for one in compared.candidates:
        yield f"\n### {md_escape(_title(one))}\n"
        yield from (f"- {md_escape(text)}" for text in (*one.differences, *one.reasons))
        yield f"\n{md_escape(sentence(one))}\n"
        yield from _markdown_table(one, is_judged=bool(compared.margins))
        if one.verdict is not None:
            yield f"\n**{md_escape(verdict_text(one))}**"


def _markdown_table(one: ComparedCandidate, *, is_judged: bool) -> Iterator[str]:
    heads = _heads(is_judged=is_judged)
    yield f"| {' | '.join(heads)} |"
    yield f"|---|{'---:|' * (len(heads) - 1)}"
    for metric in one.comparison.metrics:
        yield f"| {' | '.join(md_escape(cell) for cell in _row(metric, is_judged=is_judged))} |"


def summary_of(compared: ComparedPlaces) -> dict[str, Any]:
    """The same for `json.dumps`."""
    return {
        "a": compared.name_a,
        "b": compared.name_b,
        "machine": list(compared.machine),
        "differences": list(compared.differences),
        "remarks": list(compared.remarks),
        "margins": {metric.value: margin for metric, margin in compared.margins.items()},
        "verdict": compared.verdict,
        "candidates": [_candidate_summary(one) for one in compared.candidates],
        "sweeps": None if compared.sweeps is None else _sweeps_summary(compared.sweeps),
    }


def _candidate_summary(one: ComparedCandidate) -> dict[str, Any]:
    comparison = one.comparison
    return {
        "a": one.label_a,
        "b": one.label_b,
        "sentence": sentence(one),
        "verdict": one.verdict,
        "reasons": list(one.reasons),
        "differences": list(one.differences),
        "rounds": comparison.rounds,
        "more_rounds": comparison.more_rounds,
        "metrics": [asdict(metric) for metric in comparison.metrics],
        "cells": [{**asdict(cell), "cell": cell.cell.label} for cell in comparison.cells],
    }


def _sweeps_summary(sweeps: SweepComparison) -> dict[str, Any]:
    return {
        "warnings": list(sweeps.warnings),
        "summary": list(sweeps.verdict),
        "candidates": [
            {
                "label": row.label,
                "rank_a": row.a.rank,
                "rank_b": row.b.rank,
                "ttft_speedup": row.ttft_factor,
                "decode_speedup": row.throughput_factor,
                "peak_ratio": row.memory_factor,
            }
            for row in sweeps.rows
        ],
        "only_a": list(sweeps.only_a),
        "only_b": list(sweeps.only_b),
    }
