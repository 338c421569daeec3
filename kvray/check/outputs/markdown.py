"""A check as Markdown (GitHub's and GitLab's dialect): a whole page, and a short comment for a pull request.

What comes from outside is escaped, mentions nobody and links to nothing: a model called `@team` notifies no team.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence

from kvray.analysis.comparison import Verdict
from kvray.check.outputs import wording
from kvray.check.result import CheckedCandidate, CheckResult, MetricVerdict
from kvray.ratios import MISSING
from kvray.report import formats
from kvray.report.markdown import md_code, md_escape

MOST_BYTES = 1000 * 1024
"""GitHub drops a step's whole summary above 1024 KiB."""
MOST_COMMENT_BYTES = 60_000
"""GitHub refuses a comment above 65,536 characters."""
_MOST_ROWS = 4096
_MARKS = {Verdict.PASS: "✅", Verdict.FAIL: "❌", Verdict.INCONCLUSIVE: "⚠️"}
_ACTIVE = re.compile(r"(?<=[@#])(?=\w)|(?<=://)|(?<=\bwww\.)", re.IGNORECASE)
"""Where GitHub makes a mention, a reference or a link of plain text, escaped or not."""
_NOTHING = "\N{ZERO WIDTH SPACE}"


def render_markdown(result: CheckResult, *, most_bytes: int = MOST_BYTES) -> str:
    """The whole check as a page, of at most `most_bytes` of UTF-8; what has no room is counted."""
    return _fitting(lambda rows: _page(result, rows), most_bytes)


def render_comment(result: CheckResult) -> str:
    """A comment for a pull request: verdict and what is not PASS, the rest folded.

    Its first line is `comment_marker`, by which a bot finds its own comment of before and replaces it.
    """
    return _fitting(lambda rows: _comment(result, rows), MOST_COMMENT_BYTES)


def comment_marker(result: CheckResult) -> str:
    """A line that no reader sees, the same for each check of one model, profile and baseline."""
    key = "\n".join((result.model_id, result.profile.name, result.mode, result.baseline))
    return f"<!-- kvray-check {hashlib.sha256(key.encode(errors='replace')).hexdigest()[:12]} -->"


def _page(result: CheckResult, rows: int) -> list[str]:
    ordered = _worst_first(result.candidates)
    return [
        *_head(result, rows),
        _table(ordered, rows, several=len(ordered) > 1),
        *_notes(result, ordered, rows),
        _folded("How it was measured", [_bullets(wording.side_lines(result), rows)]),
    ]


def _comment(result: CheckResult, rows: int) -> list[str]:
    ordered = _worst_first(result.candidates)
    noted = [one for one in ordered if one.verdict is not Verdict.PASS]
    rest = [one for one in ordered if one.verdict is Verdict.PASS]
    several = len(ordered) > 1
    passing = f"{formats.plural(len(rest), wording.unit(result))} passed" if several else "Measured"
    return [
        comment_marker(result),
        *_head(result, rows),
        _table(noted, rows, several=several),
        *_notes(result, noted, rows),
        _folded(passing, [_table(rest, rows, several=several), *_notes(result, rest, rows)]),
        _folded("How it was measured", [_bullets(wording.side_lines(result), rows)]),
    ]


def _head(result: CheckResult, rows: int) -> list[str]:
    would_take = wording.would_take(result)
    return [
        f"### {_MARKS[result.verdict]} kvray check: {result.verdict.upper()}",
        f"**{_escaped(wording.summary(result))}**",
        "" if would_take is None else _escaped(would_take),
        _bullets(wording.own_reasons(result), rows),
        _escaped(wording.about(result)),
        "**What differs**" if result.differences else "",
        _bullets(wording.differences(result), rows),
    ]


def _notes(result: CheckResult, candidates: Sequence[CheckedCandidate], rows: int) -> list[str]:
    """For each candidate what is to be said beside its figures."""
    blocks = []
    for one in candidates[:rows]:
        texts = (*wording.notes(result, one), *wording.told_differences(result, one))
        failed = [f"{formats.plural(one.failed_trials, 'measurement')} failed."] if one.failed_trials else []
        aside = [f"{wording.rounds_text(one)}."] if one.disturbed_rounds and len(result.candidates) > 1 else []
        if said := (*texts, *failed, *aside):
            blocks += [f"{_label(one)}: **{one.verdict.upper()}**", _bullets(said, rows)]
    return blocks


def _table(candidates: Sequence[CheckedCandidate], rows: int, *, several: bool) -> str:
    """The metrics of `candidates`, with a column for their names where the check has `several`."""
    lines = [(one, number, metric) for one in candidates for number, metric in enumerate(wording.shown_metrics(one))]
    if not lines:
        return ""
    head = f"|{' candidate |' if several else ''} | before | now | change | 95 % interval | margin | verdict |"
    rule = f"|{':--|' if several else ''}:--|--:|--:|--:|:-:|--:|:--|"
    names = [_label(one) if number == 0 else "" for one, number, _ in lines[:rows]]
    shown = [_row([name] if several else [], metric) for name, (*_, metric) in zip(names, lines, strict=False)]
    return "\n".join((head, rule, *shown)) + _left_out(len(lines) - len(shown), "row")


def _row(name: Sequence[str], metric: MetricVerdict) -> str:
    word = wording.verdict_word(metric)
    mark = "" if metric.verdict is None else f"{_MARKS[metric.verdict]} "
    change = MISSING if metric.change is None else wording.change_text(metric.change.value)
    numbers = (
        formats.quantity(metric.before),
        formats.quantity(metric.now),
        change,
        wording.interval_text(metric.change),
        wording.margin_text(metric.margin),
    )
    cells = (
        *name,
        _escaped(f"{wording.title(metric.metric)}, {metric.metric.unit}"),
        *(number.replace(" %", "\N{NO-BREAK SPACE}%") for number in numbers),
        f"{mark}{word}",
    )
    return f"| {' | '.join(cells)} |"


def _label(candidate: CheckedCandidate) -> str:
    name = md_code(wording.name_of(candidate))
    return name if name.startswith("`") else _quiet(name)


def _bullets(texts: Iterable[str], rows: int) -> str:
    texts = tuple(texts)
    lines = [f"- {_escaped(text)}" for text in texts[:rows]]
    return "\n".join(lines) + _left_out(len(texts) - len(lines), "line")


def _left_out(number: int, noun: str) -> str:
    return f"\n\n{formats.plural(number, f'more {noun}')}, which check.json has." if number > 0 else ""


def _folded(title: str, blocks: Sequence[str]) -> str:
    inner = _joined(blocks)
    return f"<details><summary>{title}</summary>\n\n{inner}\n\n</details>" if inner else ""


def _joined(blocks: Iterable[str]) -> str:
    return "\n\n".join(block for block in blocks if block)


def _worst_first(candidates: Sequence[CheckedCandidate]) -> list[CheckedCandidate]:
    order = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)
    return sorted(candidates, key=lambda one: order.index(one.verdict))


def _escaped(text: str) -> str:
    return _quiet(md_escape(text))


def _quiet(text: str) -> str:
    return _ACTIVE.sub(_NOTHING, text)


def _fitting(render: Callable[[int], Sequence[str]], most_bytes: int) -> str:
    """The blocks of `render`, with as many rows in each list and table as fit."""
    rows = _MOST_ROWS
    while len((text := _joined(render(rows)) + "\n").encode()) > most_bytes and rows:
        rows //= 2
    return text
