"""What became slower or larger from one side to another: an interval and a verdict per metric.

`kvray check`, `kvray compare` and `kvray watch` all judge by this module. It decides from arrays alone.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from kvray.analysis.alignment import AlignedSides, align
from kvray.analysis.differences import Differences, paired, unpaired
from kvray.analysis.evidence import Array
from kvray.analysis.intervals import Interval, LogInterval
from kvray.analysis.noise import half_widths
from kvray.analysis.samples import ComparedMetric, SideSamples, side_samples
from kvray.ratios import SAME_WITHIN
from kvray.workload import Cell

__all__ = [
    "SESSION_SD",
    "CellComparison",
    "ComparedMetric",
    "Comparison",
    "Margins",
    "MetricComparison",
    "SideSamples",
    "Verdict",
    "compare",
    "side_samples",
]

SESSION_SD: Mapping[ComparedMetric, float] = {
    ComparedMetric.TTFT: 0.055,
    ComparedMetric.DECODE: 0.05,
    ComparedMetric.MEMORY: 0.005,
}
"""Relative standard deviation between two sittings of the same code, beyond what their processes explain. Measured by
`benchmarks/sessions.py` on a shared 2-core machine: 20 sessions within six hours of one day show 4 to 5 % for TTFT, 3
to 5 % for decode, hardly any for memory; those of them that lay further apart a per cent more. Days may differ more,
machines of one's own less."""
LEAST_ROUNDS = 3
"""With fewer rounds nobody can tell an outlying process from a change, so there is no verdict by the intervals."""
CERTAINTY = 0.95
MOST_MORE_ROUNDS = 200
"""More rounds than this are not worth naming: the value lies on the margin."""


class Verdict(enum.StrEnum):
    """Whether something became worse by more than its margin."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


Margins = Mapping[ComparedMetric, float]
"""How much worse a metric may become: 0.05 is 5 %. A metric without a margin is shown and not judged."""


@dataclass(frozen=True, kw_only=True)
class MetricComparison:
    """One metric over all cells.

    Attributes:
        before, now: typical values of each side in the metric's unit, geometric means over the cells; `now` / `before`
            is 1 + `change.value`.
        change: 95 % interval of now/before - 1.
        margin: how much worse it may become; `None`: not judged.
        verdict: `None` where there is no margin.
        is_better: whether it has improved, with the certainty that so many intervals need.
        more_rounds: how many more rounds would decide at the spread seen; `None` where it is decided, or where the
            value lies so close to the margin that no reasonable number would.
    """

    metric: ComparedMetric
    before: float
    now: float
    change: Interval
    margin: float | None
    verdict: Verdict | None
    is_better: bool
    more_rounds: int | None


@dataclass(frozen=True, kw_only=True)
class CellComparison:
    """One cell that is worse than the margin by itself. `change` is its 95 % interval."""

    cell: Cell
    metric: ComparedMetric
    change: Interval
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One candidate on two sides.

    Attributes:
        metrics: those that both sides measured.
        cells: those that are worse than the margin with the certainty that so many cells need.
        problems: what was not measured or collapsed, as sentences. With one of them there is no PASS.
        rounds: pairs that it rests on; where the sides did not take turns, the processes of the smaller side.
        more_rounds: how many more would decide all metrics; `None` where it is decided or none would.
    """

    metrics: tuple[MetricComparison, ...]
    cells: tuple[CellComparison, ...]
    problems: tuple[str, ...]
    verdict: Verdict
    rounds: int
    more_rounds: int | None


def compare(
    before: SideSamples,
    now: SideSamples,
    *,
    margins: Margins,
    session_sd: Mapping[ComparedMetric, float] = SESSION_SD,
    together: int = 1,
) -> Comparison:
    """How `now` differs from `before`, and whether it is worse than `margins` allow.

    Rounds that both sides measured in one session are pairs, and only they count. Without any, all processes count and
    the spread between sessions is added. Disturbed processes count only where a side has no others. Before
    `LEAST_ROUNDS` only what is missing or collapsed decides.

    Of many comparisons some look worse or better by chance. So what is said of one of them needs the certainty that
    leaves all of them together the uncertainty of one (Bonferroni's inequality; Dunn, "Multiple comparisons among
    means", Journal of the American Statistical Association 56, 1961). A FAIL has its part of as many as are looked at
    `together`, because the margin and the metrics' number are part of what `benchmarks/gate.py` tried; what is better
    has no margin, and its part is one of all metrics of all of them. Intervals that are shown, and PASS, stay at 95 %.

    Args:
        session_sd: relative standard deviation between two sittings, where this machine's own is known.
        together: how many comparisons are made of which the worst decides: candidates of a check, cases of a suite.
    """
    sides = align(before, now, judged=tuple(margins))
    if not sides.can_be_compared:
        return Comparison(
            metrics=(),
            cells=(),
            problems=sides.problems,
            verdict=Verdict.FAIL if sides.has_failed else Verdict.INCONCLUSIVE,
            rounds=0,
            more_rounds=None,
        )
    found = _differences(sides, session_sd)
    metrics = tuple(_metric_comparisons(sides, found, margins, together))
    cells = tuple(_worse_cells(sides, found, margins, together))
    verdict = _overall(metrics, cells, sides)
    return Comparison(
        metrics=metrics,
        cells=cells,
        problems=sides.problems,
        verdict=verdict,
        rounds=found.rounds,
        more_rounds=_longest(metrics) if verdict is Verdict.INCONCLUSIVE else None,
    )


def _differences(sides: AlignedSides, session_sd: Mapping[ComparedMetric, float]) -> Differences:
    """Differences of the means over all cells, one per metric; then those of each cell, where there are several."""
    before, now = _quantities(sides, sides.before), _quantities(sides, sides.now)
    columns = np.array([one.column for one in sides.metrics] * (before.shape[1] // len(sides.metrics)))
    if sides.is_paired:
        return paired(now - before, columns)
    session_sds = np.array([session_sd[one] for one in sorted(ComparedMetric, key=lambda one: one.column)])
    return unpaired(before, now, columns, session_sds[columns] ** 2 * sides.session_share)


def _quantities(sides: AlignedSides, samples: SideSamples) -> Array:
    """Processes × quantities."""
    logs = samples.logs[:, :, [one.column for one in sides.metrics]]
    means = logs.mean(axis=1)
    return np.concatenate([means, logs.reshape(len(logs), -1)], axis=1) if len(sides.cells) > 1 else means


def _metric_comparisons(
    sides: AlignedSides, found: Differences, margins: Margins, together: int
) -> Iterator[MetricComparison]:
    spread, certainty = found.variances[: len(sides.metrics)], _of_each(together)
    levels = CERTAINTY, certainty, _of_each(together * len(sides.metrics))
    widths = zip(*(half_widths(spread, level=level) for level in levels), strict=True)
    for place, (metric, (width, to_fail, to_gain)) in enumerate(zip(sides.metrics, widths, strict=True)):
        change, margin = LogInterval(value=float(found.values[place]), half_width=width), margins.get(metric)
        beyond = _beyond(metric, change.value, margin or 0.0)
        verdict = None if margin is None else _verdict(sides, metric, beyond, to_pass=width, to_fail=to_fail)
        before, now = _levels(sides, metric, change.value)
        yield MetricComparison(
            metric=metric,
            before=before,
            now=now,
            change=change.as_gain(),
            margin=margin,
            verdict=verdict,
            is_better=verdict in (Verdict.PASS, None) and _is_better(metric, change, to_gain),
            more_rounds=_more_rounds(sides, found, place, beyond, certainty)
            if verdict is Verdict.INCONCLUSIVE
            else None,
        )


def _of_each(count: int) -> float:
    """The certainty that each of `count` statements needs, so that all together have `CERTAINTY`."""
    return 1 - (1 - CERTAINTY) / count


def _is_better(metric: ComparedMetric, change: LogInterval, half_width: float) -> bool:
    """Whether it has improved by more than what is shown as none, and by more than `half_width` might explain."""
    sign = -1 if metric.worse_is_more else 1
    return sign * change.value > half_width and sign * change.as_gain().value > SAME_WITHIN


def _levels(sides: AlignedSides, metric: ComparedMetric, change: float) -> tuple[float, float]:
    """Geometric means of both sides whose ratio is `change`, a logarithm.

    The change counts an outlier for less, so the mean of the side that has it follows from the other side's mean: a
    table must not say 2.4 → 2.7 and +1 %.
    """
    processes = [side.logs[:, :, metric.column].mean(axis=1) for side in (sides.before, sides.now)]
    (before, now), (skew_before, skew_now) = zip(
        *((float(logs.mean()), abs(float(logs.mean() - np.median(logs)))) for logs in processes), strict=True
    )
    if skew_before <= skew_now:
        return math.exp(before), math.exp(before + change)
    return math.exp(now - change), math.exp(now)


def _beyond(metric: ComparedMetric, value: float, margin: float) -> float:
    """How far a logarithm of now/before is on the worse side of the margin; below 0 it is better."""
    return value - math.log1p(margin) if metric.worse_is_more else math.log1p(-margin) - value


def _verdict(sides: AlignedSides, metric: ComparedMetric, beyond: float, *, to_pass: float, to_fail: float) -> Verdict:
    if _missing_rounds(sides) or -to_pass <= beyond <= to_fail:
        return Verdict.INCONCLUSIVE
    if beyond <= 0:
        return Verdict.PASS
    return Verdict.INCONCLUSIVE if _others_may_be_the_cause(sides, metric) else Verdict.FAIL


def _others_may_be_the_cause(sides: AlignedSides, metric: ComparedMetric) -> bool:
    """Whether other programs slowed every process of now and not those of before. Memory they do not change."""
    is_time = metric is not ComparedMetric.MEMORY
    return bool(is_time and sides.now.disturbed.all() and not sides.before.disturbed.all())


def _missing_rounds(sides: AlignedSides) -> int:
    return max(LEAST_ROUNDS - len(sides.now.logs), 0)


def _more_rounds(sides: AlignedSides, found: Differences, place: int, beyond: float, to_fail: float) -> int | None:
    """What it takes until the interval ends at the margin, if the value stays where it is.

    Args:
        to_fail: the certainty of a FAIL.
    """
    measured, fixed = len(sides.now.logs), float(found.fixed_variances[place])
    reach = round(NormalDist().inv_cdf((1 + (to_fail if beyond > 0 else CERTAINTY)) / 2), 2)
    room = (beyond / reach) ** 2 - fixed
    of_one_process = (float(found.variances[place].mean()) - fixed) * measured
    if room <= 0 or of_one_process / room - measured > MOST_MORE_ROUNDS:
        return None
    return max(math.ceil(of_one_process / room) - measured, _missing_rounds(sides), 1)


def _worse_cells(sides: AlignedSides, found: Differences, margins: Margins, together: int) -> Iterator[CellComparison]:
    """Each cell has its part of the uncertainty that all together may have."""
    judged = [one for one in sides.metrics if one in margins]
    if len(sides.cells) < 2 or not judged:
        return
    level = _of_each(together * len(sides.cells) * len(judged))
    spread = found.variances[len(sides.metrics) :]
    strict, shown = half_widths(spread, level=level), half_widths(spread, level=CERTAINTY)
    quantities = [(cell, metric) for cell in sides.cells for metric in sides.metrics]
    for place, (cell, metric) in enumerate(quantities):
        value, margin = float(found.values[len(sides.metrics) + place]), margins.get(metric)
        if margin is None:
            continue
        reach, beyond = strict[place], _beyond(metric, value, margin)
        if _verdict(sides, metric, beyond, to_pass=reach, to_fail=reach) is Verdict.FAIL:
            change = LogInterval(value=value, half_width=shown[place]).as_gain()
            yield CellComparison(cell=cell, metric=metric, change=change, verdict=Verdict.FAIL)


def _overall(metrics: Sequence[MetricComparison], cells: Sequence[CellComparison], sides: AlignedSides) -> Verdict:
    verdicts = [one.verdict for one in metrics if one.verdict is not None]
    if cells or sides.has_failed or Verdict.FAIL in verdicts:
        return Verdict.FAIL
    is_pass = verdicts and not sides.problems and all(one is Verdict.PASS for one in verdicts)
    return Verdict.PASS if is_pass else Verdict.INCONCLUSIVE


def _longest(metrics: Sequence[MetricComparison]) -> int | None:
    """More rounds for all open metrics; `None` where one of them cannot be decided so."""
    asked = [one.more_rounds for one in metrics if one.verdict is Verdict.INCONCLUSIVE]
    return max((one or 0 for one in asked), default=0) or None if None not in asked else None
