"""Results of checks of every verdict, with made-up figures: what the outputs of a check are tried with."""

from __future__ import annotations

import datetime as dt
from typing import Any

from kvray.analysis.comparison import ComparedMetric, Verdict
from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, CompileMode, DeviceType, DType
from kvray.check.result import CellVerdict, Change, CheckedCandidate, CheckMode, CheckResult, MetricVerdict, SideInfo
from kvray.workload import Cell, get_profile

STARTED = dt.datetime(2026, 11, 27, 18, 0, tzinfo=dt.UTC)
MARGINS = {ComparedMetric.TTFT: 0.05, ComparedMetric.DECODE: 0.05, ComparedMetric.MEMORY: 0.02}
BEFORE = {ComparedMetric.TTFT: 118.0, ComparedMetric.DECODE: 41.5, ComparedMetric.MEMORY: 641.0}
EVIL = "<img src=x onerror=alert(1)>|`*_[x](http://evil)\x1b[31m\x00]]></failure>\ufffe @team #12\n\nnext"
"""A text as hostile as a model's name or an engine's message may be."""


def change(value: float, half_width: float = 0.02) -> Change:
    return Change(value=value, low=value - half_width, high=value + half_width)


def metric(which: ComparedMetric, value: float, verdict: Verdict | None, half_width: float = 0.02) -> MetricVerdict:
    gain = -value if which.worse_is_more else value
    return MetricVerdict(
        metric=which,
        before=BEFORE[which],
        now=BEFORE[which] * (1 + value),
        change=change(value, half_width),
        margin=None if verdict is None else MARGINS[which],
        verdict=verdict,
        is_better=verdict in (Verdict.PASS, None) and gain > max(half_width, 0.005),
        more_rounds=14 if verdict is Verdict.INCONCLUSIVE else None,
    )


def metrics(ttft: MetricVerdict | None = None, decode: MetricVerdict | None = None) -> tuple[MetricVerdict, ...]:
    """All three; those that are not given did not change."""
    return (
        ttft or metric(ComparedMetric.TTFT, 0.004, Verdict.PASS),
        decode or metric(ComparedMetric.DECODE, -0.003, Verdict.PASS),
        metric(ComparedMetric.MEMORY, 0.0, Verdict.PASS, 0.001),
    )


def checked(verdict: Verdict = Verdict.PASS, **values: Any) -> CheckedCandidate:
    candidate = Candidate(
        engine="transformers",
        cache=CacheStrategy.DYNAMIC,
        attention=AttentionBackend.SDPA_FLASH,
        dtype=DType.BFLOAT16,
        compile=CompileMode.OFF,
    )
    given = {"label": candidate.label, "candidate": candidate, "metrics": metrics(), "rounds": 6, **values}
    return CheckedCandidate(verdict=verdict, **given)


def check_of(*candidates: CheckedCandidate, verdict: Verdict | None = None, **values: Any) -> CheckResult:
    found = [one.verdict for one in candidates]
    worst = next((one for one in (Verdict.FAIL, Verdict.INCONCLUSIVE) if one in found), Verdict.PASS)
    sides = (
        SideInfo(name="A", kvray_version="0.1.0", engine_versions={"transformers": "5.22.0", "torch": "2.13.0"}),
        SideInfo(
            name="B",
            kvray_version="0.1.0",
            engine_versions={"transformers": "5.23.0", "torch": "2.13.0"},
            python="/opt/new/bin/python",
            variables=("OMP_NUM_THREADS",),
            host="runner-1",
        ),
    )
    given: dict[str, Any] = {
        "mode": CheckMode.A_B,
        "baseline": "baseline/check.json",
        "model_id": "HuggingFaceTB/SmolLM2-135M",
        "profile": get_profile("ci-micro"),
        "device": DeviceType.CPU,
        "device_name": "AMD EPYC 7B13, 2 cores",
        "sides": sides,
        "differences": ("transformers 5.22.0 in A, 5.23.0 in B",),
        "margins": MARGINS,
        "budget_s": 600.0,
        **values,
    }
    return CheckResult(
        kvray_version="0.1.0",
        started_at=STARTED,
        ended_at=STARTED + dt.timedelta(seconds=252),
        seconds=252.0,
        candidates=candidates,
        verdict=verdict or worst,
        **given,
    )


PASSED = check_of(checked())
BETTER = check_of(checked(metrics=metrics(decode=metric(ComparedMetric.DECODE, 0.123, Verdict.PASS))))
SLOWER = check_of(
    checked(
        Verdict.FAIL,
        metrics=metrics(
            metric(ComparedMetric.TTFT, 0.123, Verdict.FAIL), metric(ComparedMetric.DECODE, -0.52, Verdict.FAIL)
        ),
        cells=(
            CellVerdict(cell=Cell(64, 16, 1), metric=ComparedMetric.TTFT, change=change(0.201), verdict=Verdict.FAIL),
        ),
    )
)
OTHER_KERNEL = check_of(
    checked(
        Verdict.FAIL,
        reasons=("another kernel ran in decode: sdpa_math, before sdpa_flash",),
        differences=("kernel in decode: sdpa_flash in A, sdpa_math in B",),
        failed_trials=1,
    )
)
UNDECIDED = check_of(
    checked(
        Verdict.INCONCLUSIVE, metrics=metrics(metric(ComparedMetric.TTFT, 0.03, Verdict.INCONCLUSIVE, 0.05)), rounds=8
    ),
    more_rounds=14,
    more_seconds=540.0,
)
NOT_MEASURED = check_of(
    checked(
        Verdict.FAIL,
        reasons=("every measurement on side B failed: crashed (SIGSEGV)",),
        metrics=(MetricVerdict(metric=ComparedMetric.TTFT, before=118.0, margin=0.05, verdict=Verdict.FAIL),),
        rounds=0,
        failed_trials=3,
    )
)
SEVERAL = check_of(
    checked(label="static/sdpa_flash/bfloat16"),
    checked(Verdict.FAIL, metrics=metrics(metric(ComparedMetric.TTFT, 0.123, Verdict.FAIL))),
    checked(label="quantized/eager/float32", model_id="random:llama"),
    checked(label="offloaded/eager/float32", metrics=metrics(metric(ComparedMetric.TTFT, -0.2, Verdict.PASS))),
    mode=CheckMode.SUITE,
)
HOSTILE = check_of(
    checked(Verdict.FAIL, label=EVIL, reasons=(EVIL,), differences=(EVIL,)),
    checked(Verdict.INCONCLUSIVE, label=EVIL * 200, model_id=EVIL),
    model_id=EVIL,
    device_name=EVIL,
    differences=(EVIL,),
    reasons=(EVIL + "!",),
    sides=tuple(
        SideInfo(name=EVIL, kvray_version=EVIL, engine_versions={EVIL: EVIL}, python=EVIL, host=EVIL, variables=(EVIL,))
        for _ in range(2)
    ),
)
EMPTY = check_of(verdict=Verdict.FAIL, reasons=("Nothing of the baseline can be measured here.",))
ALL = {
    "passed": PASSED,
    "better": BETTER,
    "slower": SLOWER,
    "other kernel": OTHER_KERNEL,
    "undecided": UNDECIDED,
    "not measured": NOT_MEASURED,
    "several": SEVERAL,
    "hostile": HOSTILE,
    "empty": EMPTY,
}
