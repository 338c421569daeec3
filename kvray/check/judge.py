"""From what both sides measured of a candidate to its verdict, and from all candidates to that of the check."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence

from kvray.analysis import looks
from kvray.analysis.comparison import (
    CellComparison,
    ComparedMetric,
    Comparison,
    Margins,
    MetricComparison,
    Verdict,
    compare,
)
from kvray.analysis.intervals import Interval
from kvray.analysis.looks import is_over
from kvray.candidate import Candidate
from kvray.check.measured import samples_of
from kvray.check.result import (
    CellVerdict,
    Change,
    CheckedCandidate,
    CheckMode,
    MeasuredSide,
    MetricVerdict,
    RanFacts,
    SideInfo,
)
from kvray.store.speed_variables import SPEED_VARIABLES, names_in
from kvray.workload import WorkloadProfile

DEFAULT_MARGINS: Margins = {ComparedMetric.TTFT: 0.05, ComparedMetric.DECODE: 0.05, ComparedMetric.MEMORY: 0.02}
RECORD_MARGINS: Margins = {ComparedMetric.TTFT: 0.25, ComparedMetric.DECODE: 0.25, ComparedMetric.MEMORY: 0.03}
"""Against a record. Two sessions of the same code differ by some per cent (`benchmarks/sessions.py`), so no number of
rounds shows that times have kept within 5 %."""
_OTHERWISE = {
    "kernel_prefill": "another kernel ran in prefill",
    "kernel_decode": "another kernel ran in decode",
    "cache_class": "another cache ran",
    "cache_layers": "the cache has other layers",
    "kv_dtype": "keys and values have another type",
}
"""What must be the same on both sides, by the field of `RanFacts`."""
_KL_NOISE = 1e-4
"""Nats per token by which two measurements of the same may differ."""
_LIBRARY_NOISE_MIB = 4
"""Two processes of one side differ by less in what files of libraries take."""
_LIST_SIGN, _LONG_LIST = " | ", 4
"""Between the parts of a list, as llama.cpp writes it, and from how many signs on it is too long to show whole."""


def default_margins(profile: WorkloadProfile, mode: CheckMode) -> dict[ComparedMetric, float]:
    """The margins of a profile: a metric that does not count in its score is shown, not judged."""
    margins = RECORD_MARGINS if mode is CheckMode.RECORD else DEFAULT_MARGINS
    weights = profile.weights
    counts = {
        ComparedMetric.TTFT: weights.ttft,
        ComparedMetric.DECODE: weights.throughput,
        ComparedMetric.MEMORY: weights.memory,
    }
    return {metric: margin for metric, margin in margins.items() if counts[metric] > 0}


def judged(
    candidate: Candidate,
    before: MeasuredSide,
    now: MeasuredSide,
    names: tuple[str, str],
    margins: Margins,
    *,
    together: int,
) -> CheckedCandidate:
    """The verdict on one candidate of as many as are looked at `together`, from what was measured so far."""
    compared: Comparison | None = None
    if _is_measured(before, now):
        compared = compare(samples_of(before), samples_of(now), margins=margins, together=together)
    reasons = (*_failures(before, now, names), *_otherwise(before.ran, now.ran))
    problems = () if compared is None or before.failures or now.failures else compared.problems
    verdict = _verdict(before, now, compared, fails=bool(_otherwise(before.ran, now.ran)))
    return CheckedCandidate(
        label=candidate.label,
        candidate=candidate,
        verdict=verdict,
        reasons=(*reasons, *problems),
        differences=tuple(
            dict.fromkeys(
                (*_differences(before.ran, now.ran), *_libraries(before, now), *_disturbed(before, now, names))
            )
        ),
        metrics=() if compared is None else tuple(map(_metric, compared.metrics)),
        cells=() if compared is None else tuple(map(_cell, compared.cells)),
        rounds=0 if compared is None else compared.rounds,
        measured_rounds=len(now.processes) + len(now.failures),
        disturbed_rounds=_set_aside(before, now),
        failed_trials=len(before.failures) + len(now.failures),
        more_rounds=compared.more_rounds if compared is not None and verdict is Verdict.INCONCLUSIVE else None,
        before=before,
        now=now,
    )


def is_closed(checked: CheckedCandidate) -> bool:
    """Whether no further round is measured. A record does not grow: once it is seen to tell too little, that is all."""
    if checked.before.failures or is_over(checked.verdict, len(checked.now.processes)):
        return True
    return _is_settled(checked) and is_hopeless(checked)


def is_hopeless(checked: CheckedCandidate) -> bool:
    """Whether as many rounds as a check measures do not come to a verdict, or would not at the spread seen."""
    if checked.verdict is not Verdict.INCONCLUSIVE or checked.before.failures:
        return False
    measured = len(checked.now.processes)
    return looks.is_hopeless(measured, checked.more_rounds, is_settled=_is_settled(checked))


def _is_settled(checked: CheckedCandidate) -> bool:
    before, now = ({one.session for one in side.processes} for side in (checked.before, checked.now))
    return looks.is_settled(len(checked.now.processes), is_record=before.isdisjoint(now))


def overall(candidates: Sequence[CheckedCandidate]) -> Verdict:
    """The worst verdict of all."""
    verdicts = [one.verdict for one in candidates]
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    return Verdict.PASS if verdicts and set(verdicts) == {Verdict.PASS} else Verdict.INCONCLUSIVE


def more_rounds(candidates: Sequence[CheckedCandidate]) -> int | None:
    """How many rounds the open candidates take; `None` where there are none, or more rounds would not do."""
    is_lost = [is_closed(one) or is_hopeless(one) for one in candidates]
    asked = [
        None if lost else one.more_rounds
        for one, lost in zip(candidates, is_lost, strict=True)
        if one.verdict is Verdict.INCONCLUSIVE
    ]
    return max((one or 0 for one in asked), default=0) or None if None not in asked else None


def side_differences(
    before: SideInfo,
    now: SideInfo,
    *,
    before_variables: Mapping[str, str] | None = None,
    now_variables: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """What differs between two sides, for every candidate: `torch: 2.12.0 → 2.13.0`.

    Args:
        before_variables, now_variables: environment variables beside those that the sides have written down. Values are
            told of those alone that make libraries faster or slower; of others the name, because they may be secret.
    """
    pairs = {
        "device": (before.device_name, now.device_name),
        "driver": (before.driver_version, now.driver_version),
        "usable CPUs": (before.cpus, now.cpus),
        "memory, GiB": (before.memory_gib, now.memory_gib),
        "kvray": (before.kvray_version, now.kvray_version),
        **{
            name: (before.engine_versions[name], now.engine_versions[name])
            for name in before.engine_versions.keys() & now.engine_versions.keys()
        },
    }
    told = [f"{name}: {one} → {two}" for name, (one, two) in pairs.items() if None not in (one, two) and one != two]
    kept = _kept_variables(before, now)
    before_all, now_all = kept[0] | dict(before_variables or {}), kept[1] | dict(now_variables or {})
    return (*sorted(told), *_variable_differences(before_all, now_all))


def _kept_variables(before: SideInfo, now: SideInfo) -> tuple[dict[str, str], dict[str, str]]:
    """What both sides have written down of the variables that both looked at. One whose value a side left out counts
    only where the other had not set it."""
    one, two = before.speed_variables, now.speed_variables
    if one is None or two is None:
        return {}, {}
    both = names_in(before.speed_variables_list) & names_in(now.speed_variables_list)
    both -= {name for name in one.keys() & two.keys() if one[name] is None or two[name] is None}
    first, second = ({name: _kept_value(side[name]) for name in side if name in both} for side in (one, two))
    return first, second


def _kept_value(value: str | None) -> str:
    return "set" if value is None else value


def _variable_differences(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) == now.get(name):
            continue
        one, two = (_shown_value(name, side.get(name)) for side in (before, now))
        yield f"{name}: {one} → {two}" if one != two else f"{name} has another value"


def _shown_value(name: str, value: str | None) -> str:
    if value is None:
        return "not set"
    return value if name in SPEED_VARIABLES else "set"


def _is_measured(before: MeasuredSide, now: MeasuredSide) -> bool:
    return bool(before.processes and now.processes)


def _failures(before: MeasuredSide, now: MeasuredSide, names: tuple[str, str]) -> Iterator[str]:
    for name, side in zip(names, (before, now), strict=True):
        yield from dict.fromkeys(f"{name}: {text}" for text in side.failures)


def _otherwise(before: RanFacts | None, now: RanFacts | None) -> tuple[str, ...]:
    """What ran otherwise than before, which fails whatever the numbers."""
    if before is None or now is None:
        return ()
    pairs = {text: (getattr(before, name), getattr(now, name)) for name, text in _OTHERWISE.items()}
    known = {text: pair for text, pair in pairs.items() if None not in pair}
    return tuple(f"{text}: {one} → {two}" for text, (one, two) in known.items() if one != two)


def _differences(before: RanFacts | None, now: RanFacts | None) -> Iterator[str]:
    """What the engine made of the configuration on each side."""
    if before is None or now is None:
        return
    if None not in (before.threads, now.threads) and before.threads != now.threads:
        yield f"threads: {before.threads} → {now.threads}"
    if before.kl_mean is not None and now.kl_mean is not None and abs(now.kl_mean - before.kl_mean) > _KL_NOISE:
        yield f"loss of quality (KL): {before.kl_mean:.4f} → {now.kl_mean:.4f} nats per token"
    one, two = (json.loads(side.resolved) if side.resolved else {} for side in (before, now))
    for name in sorted(one.keys() & two.keys()):
        if one[name] != two[name]:
            yield f"{name}: {' → '.join(_what_changed(str(one[name]), str(two[name])))}"


def _what_changed(before: str, now: str) -> tuple[str, str]:
    """What only one of two long lists has, such as the instructions that a library was compiled for."""
    if min(before.count(_LIST_SIGN), now.count(_LIST_SIGN)) < _LONG_LIST:
        return before, now
    one, two = before.split(_LIST_SIGN), now.split(_LIST_SIGN)
    sides = ([part for part in one if part not in two], [part for part in two if part not in one])
    return (_LIST_SIGN.join(sides[0]) or "without that", _LIST_SIGN.join(sides[1]) or "without that")


def _libraries(before: MeasuredSide, now: MeasuredSide) -> Iterator[str]:
    """What is not compared, where it would have shown."""
    each = [[one.library_mib for one in side.processes if one.library_mib is not None] for side in (before, now)]
    if all(each):
        one, two = map(statistics.median, each)
        if abs(two - one) > _LIBRARY_NOISE_MIB:
            yield f"libraries' files in memory: {one:.0f} → {two:.0f} MiB, which the system decides: not compared"


def _disturbed(before: MeasuredSide, now: MeasuredSide, names: tuple[str, str]) -> Iterator[str]:
    """Sides whose figures rest on disturbed runs alone."""
    for name, side in zip(names, (before, now), strict=True):
        if side.processes and all(one.disturbed for one in side.processes):
            yield f"{name}: other programs disturbed every process, so its figures may be too low or too high"


def _set_aside(before: MeasuredSide, now: MeasuredSide) -> int:
    """Rounds of this sitting that do not count: a side was disturbed in them, and has other processes that were not."""
    here = {one.session for one in now.processes}
    calm_sides = [side for side in (before, now) if not all(one.disturbed for one in side.processes)]
    disturbed = (one for side in calm_sides for one in side.processes if one.disturbed and one.session in here)
    return len({(one.session, one.round) for one in disturbed})


def _verdict(before: MeasuredSide, now: MeasuredSide, compared: Comparison | None, *, fails: bool) -> Verdict:
    if now.failures or fails:
        return Verdict.FAIL
    if before.failures or compared is None:
        return Verdict.INCONCLUSIVE
    return compared.verdict


def _metric(one: MetricComparison) -> MetricVerdict:
    return MetricVerdict(
        metric=one.metric,
        before=one.before,
        now=one.now,
        change=_change(one.change),
        margin=one.margin,
        verdict=one.verdict,
        is_better=one.is_better,
        more_rounds=one.more_rounds,
    )


def _cell(one: CellComparison) -> CellVerdict:
    return CellVerdict(cell=one.cell, metric=one.metric, change=_change(one.change), verdict=one.verdict)


def _change(interval: Interval) -> Change:
    return Change(value=interval.value, low=interval.low, high=interval.high)
