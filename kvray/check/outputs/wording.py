"""What every output of a check says, in words: the verdict, each metric's change, what differs, what it would take.

Texts from outside (labels, versions, messages of engines) are cleaned and shortened here; each output escapes them.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvray import ratios
from kvray.analysis.comparison import ComparedMetric, Verdict
from kvray.check.result import CellVerdict, Change, CheckedCandidate, CheckMode, CheckResult, MetricVerdict, SideInfo
from kvray.ratios import MISSING, amount_sign, multiple
from kvray.report import formats

MOST_CHARACTERS = 500
"""Length of one text from outside. An engine's message may be a page; `check.json` has it whole."""
_NO_DIFFERENCE = 1e-6
"""Changes below this are none."""
_MORE_AND_LESS = {
    ComparedMetric.TTFT: ("longer", "shorter", "long"),
    ComparedMetric.DECODE: ("higher", "lower", "high"),
    ComparedMetric.MEMORY: ("higher", "lower", "high"),
}
_MODES = {
    CheckMode.RECORD: "compared with the record",
    CheckMode.A_B: "both sides measured now, in turn",
    CheckMode.SUITE: "micro-suite",
}


def headline(result: CheckResult) -> str:
    """The verdict and its first ground, e.g. `FAIL: TTFT is 12.3 % longer (…); the margin is 5 %.`"""
    return f"{result.verdict.upper()}: {begun_small(summary(result))}"


def summary(result: CheckResult) -> str:
    """The headline without its first word, as a sentence of its own."""
    if not result.candidates and not result.reasons:
        return "Nothing was compared."
    concerned = [one for one in result.candidates if _is_noted(result, one)]
    total = len(result.candidates)
    if result.verdict is Verdict.PASS:
        are = "is" if len(concerned) == 1 else "are"
        some = f" {len(concerned)} of {total} {unit(result)}s {are} better than before."
        better = some if concerned and total > 1 else ""
        return f"Nothing is worse than its margin.{better or _with_more(result)}"
    if concerned and total > 1:
        one, several = ("fails", "fail") if result.verdict is Verdict.FAIL else ("is undecided", "are undecided")
        return f"{len(concerned)} of {total} {unit(result)}s {one if len(concerned) == 1 else several}."
    return _with_more(result).strip() or "Nothing was measured to its end."


def unit(result: CheckResult) -> str:
    """What is checked: the suite has cases, everything else candidates."""
    return "case" if result.mode is CheckMode.SUITE else "candidate"


def own_reasons(result: CheckResult) -> tuple[str, ...]:
    """Reasons of the check as a whole, without those that a candidate has too, and without what the headline says."""
    return tuple(text for text in _own_reasons(result) if text != _said(result))


def notes(result: CheckResult, candidate: CheckedCandidate) -> tuple[str, ...]:
    """What is to be said of a candidate beside its figures, without what the headline says."""
    return tuple(text for text in (*grounds(candidate), *gains(candidate)) if text != _said(result))


def grounds(candidate: CheckedCandidate) -> tuple[str, ...]:
    """Why its verdict is not PASS: first what fails whatever the numbers, then the metrics, then single cells."""
    metrics = [metric_sentence(one) for one in candidate.metrics if one.verdict is candidate.verdict]
    cells = [cell_sentence(one) for one in candidate.cells if one.verdict is candidate.verdict]
    reasons = [sentence(text) for text in candidate.reasons]
    return (*reasons, *([] if candidate.verdict is Verdict.PASS else (*metrics, *cells)))


def gains(candidate: CheckedCandidate) -> tuple[str, ...]:
    """What became better, a sentence each."""
    return tuple(
        f"{title(one.metric)} is better than before: {_words_and_interval(one.metric, one.change)}."
        for one in candidate.metrics
        if one.change is not None and one.is_better
    )


def shown_metrics(candidate: CheckedCandidate) -> tuple[MetricVerdict, ...]:
    """Without those that nobody measured and nobody judges."""
    return tuple(one for one in candidate.metrics if (one.before, one.now, one.verdict) != (None, None, None))


def metric_sentence(metric: MetricVerdict) -> str:
    """`TTFT is 12.3 % longer (+9.1 % to +15.0 %); the margin is 5 %.`"""
    if metric.change is None:
        return f"{title(metric.metric)} was not measured on both sides."
    margin = "it has no margin" if metric.margin is None else f"the margin is {margin_text(metric.margin)}"
    if metric.verdict is Verdict.INCONCLUSIVE:
        between = f"lies between {interval_text(metric.change).replace(' to ', ' and ')}"
        return f"The change of {_name(metric.metric)} {between}; {margin}.{_uncertain(metric)}"
    return f"{title(metric.metric)} is {_words_and_interval(metric.metric, metric.change)}; {margin}."


def _uncertain(metric: MetricVerdict) -> str:
    """What explains that an interval outside the margin is no FAIL."""
    if metric.change is None or metric.margin is None:
        return ""
    sign = 1 if metric.metric.worse_is_more else -1
    is_outside = min(sign * metric.change.low, sign * metric.change.high) > metric.margin
    return " That it is worse is not certain enough for a FAIL." if is_outside else ""


def cell_sentence(cell: CellVerdict) -> str:
    """`TTFT at 512→32 tokens is 20.1 % longer (+12.0 % to +28.8 %), outside the margin by itself.`"""
    what = f"{title(cell.metric)} at {cell.cell.label} tokens"
    return f"{what} is {_words_and_interval(cell.metric, cell.change)}, outside the margin by itself."


def change_words(metric: ComparedMetric, change: float) -> str:
    """`12.3 % longer`, `1.92× as long`, `0.40× as high`, `the same`."""
    more, less, adjective = _MORE_AND_LESS[metric]
    if _is_none(change):
        return "the same"
    if not -0.5 < change < 0.5:
        return f"{multiple(1 + change) if change > 0 else amount_sign(1 + change)} as {adjective}"
    return f"{abs(change) * 100:.1f} % {more if change > 0 else less}"


def change_text(change: float) -> str:
    """For a table: `+12.3 %`, `−0.4 %`, `1.92×`, `0.40×`. Finer than in a report, as margins are a few per cent."""
    if not -0.5 < change < 0.5:
        return amount_sign(1 + change)
    return _percent_text(change)


def interval_text(change: Change | None) -> str:
    """In the unit of `change_text`: `−0.4 % to +4.6 %`, `1.38× to 2.10×`."""
    if change is None:
        return MISSING
    if not -0.5 < change.value < 0.5:
        return ratios.interval_text(1 + change.low, 1 + change.high)
    return f"{_end_text(change.low)} to {_end_text(change.high)}"


def told_differences(result: CheckResult, candidate: CheckedCandidate) -> list[str]:
    """What differs for `candidate`, a line each. The suite also remarks on what is the same or was not compared."""
    begin = "" if result.mode is CheckMode.SUITE else "differs: "
    return [f"{begin}{outside(text)}" for text in candidate.differences]


def margin_text(margin: float | None) -> str:
    """`5 %`, `2.5 %`, or a dash where the metric is only shown."""
    return MISSING if margin is None else f"{margin * 100:.3g} %"


def title(metric: ComparedMetric) -> str:
    """The metric's name as it begins a sentence or a row."""
    return f"{metric.title[:1].upper()}{metric.title[1:]}"


def verdict_word(metric: MetricVerdict) -> str:
    """`PASS`, `PASS, better`, `FAIL`, `INCONCLUSIVE`; `not judged` without a margin."""
    word = "not judged" if metric.verdict is None else metric.verdict.upper()
    return f"{word}, better" if metric.is_better else word


def would_take(result: CheckResult) -> str | None:
    """What would bring a verdict, e.g. `About 14 more rounds (about 9 min) would decide. Give a larger --budget.`"""
    if result.verdict is not Verdict.INCONCLUSIVE:
        return None
    if result.is_interrupted:
        return "It was interrupted. Check again."
    if result.more_rounds is None:
        return None if result.reasons else "More rounds would hardly decide: the change is too close to the margin."
    time = (
        "" if result.more_seconds is None else f" ({formats.duration_range(result.more_seconds, result.more_seconds)})"
    )
    return f"About {formats.plural(result.more_rounds, 'more round')}{time} would decide. Give a larger --budget."


def about(result: CheckResult) -> str:
    """What was checked, where and how, on one line."""
    parts = [
        outside(result.shown_model),
        name_of(result.candidates[0]) if len(result.candidates) == 1 else "",
        f"profile {outside(result.profile.name)}",
        outside(result.device_name),
        _MODES[result.mode],
        rounds_of_check(result),
        formats.duration_range(result.seconds, result.seconds).removeprefix("about "),
    ]
    return " · ".join(part for part in parts if part)


def rounds_of_check(result: CheckResult) -> str:
    """The rounds of its candidate; of several, as many as that one had which was measured most often."""
    if len(result.candidates) == 1:
        return rounds_text(result.candidates[0])
    return formats.plural(max(map(_rounds_of, result.candidates), default=0), "round")


def rounds_text(candidate: CheckedCandidate) -> str:
    """`4 rounds`, `4 rounds, 1 of them set aside because other programs disturbed it`."""
    measured, aside = formats.plural(_rounds_of(candidate), "round"), candidate.disturbed_rounds
    them = "it" if aside == 1 else "them"
    return f"{measured}, {aside} of them set aside because other programs disturbed {them}" if aside else measured


def name_of(candidate: CheckedCandidate) -> str:
    """Its label, behind its model where that is not the check's."""
    label = outside(candidate.label)
    return label if candidate.model_id is None else f"{outside(candidate.model_id)} {label}"


def differences(result: CheckResult) -> tuple[str, ...]:
    """What differs between the sides for every candidate; a candidate's own are with the candidate."""
    return tuple(map(outside, result.differences))


def side_lines(result: CheckResult) -> Iterator[str]:
    """Each side in one line: what it runs, in which Python, where."""
    for side in result.sides:
        yield f"{outside(side.name)}: {', '.join(_side_parts(side))}"


def outside(text: object) -> str:
    """A text from outside on one line, without control characters, shortened."""
    line = formats.clean_line(str(text))
    return line if len(line) <= MOST_CHARACTERS else f"{line[: MOST_CHARACTERS - 1]}…"


def begun_small(text: str) -> str:
    """As it goes on behind a colon: an abbreviation keeps its capitals."""
    return text if text[1:2].isupper() else f"{text[:1].lower()}{text[1:]}"


def sentence(text: str) -> str:
    """A reason from `check.json` as a sentence."""
    text = outside(text)
    text = f"{text[:1].upper()}{text[1:]}"
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def _said(result: CheckResult) -> str | None:
    """The first ground, or gain, which the headline of a check of one candidate says."""
    if len(result.candidates) > 1 and any(_is_noted(result, one) for one in result.candidates):
        return None
    return next(iter(_all_notes(result)), None)


def _all_notes(result: CheckResult) -> list[str]:
    noted = (one for one in result.candidates if _is_noted(result, one))
    return [*_own_reasons(result), *(text for one in noted for text in (*grounds(one), *gains(one)))]


def _is_noted(result: CheckResult, candidate: CheckedCandidate) -> bool:
    return candidate.verdict is result.verdict and bool(candidate.verdict is not Verdict.PASS or gains(candidate))


def _with_more(result: CheckResult) -> str:
    """What the headline says, and how much more there is."""
    said, count = _said(result), len(_all_notes(result))
    if said is None:
        return ""
    return f" {said}" + (f" {formats.plural(count - 1, 'more reason')} below." if count > 1 else "")


def _own_reasons(result: CheckResult) -> tuple[str, ...]:
    theirs = {text for one in result.candidates for text in one.reasons}
    return tuple(sentence(text) for text in dict.fromkeys(result.reasons) if text not in theirs)


def _side_parts(side: SideInfo) -> Iterator[str]:
    if side.kvray_version:
        yield f"kvray {outside(side.kvray_version)}"
    yield from (f"{outside(name)} {outside(version)}" for name, version in sorted(side.engine_versions.items()))
    if side.python:
        yield outside(side.python)
    if side.variables:
        yield f"with {' and '.join(map(outside, side.variables))} set"
    if side.host:
        yield f"host {outside(side.host)}"
    if side.run_id:
        yield f"run {outside(side.run_id)}"
    if side.measured_at:
        yield formats.timestamp(side.measured_at)


def _words_and_interval(metric: ComparedMetric, change: Change) -> str:
    return f"{change_words(metric, change.value)} ({interval_text(change)})"


def _rounds_of(candidate: CheckedCandidate) -> int:
    measured = candidate.measured_rounds
    return candidate.rounds if measured is None else measured


def _is_none(change: float) -> bool:
    return abs(change) < 0.0005


def _name(metric: ComparedMetric) -> str:
    return begun_small(title(metric))


def _end_text(change: float) -> str:
    """In per cent, with the digits that tell on which side of none it is."""
    if _is_none(change) and abs(change) > _NO_DIFFERENCE:
        return f"{'+' if change > 0 else '−'}{abs(change) * 100:.1g} %"
    return _percent_text(change)


def _percent_text(change: float) -> str:
    sign = "±" if _is_none(change) else "+" if change > 0 else "−"
    return f"{sign}{abs(change) * 100:.1f} %"
