"""A result of a check for tests: two candidates, one of them slower."""

from __future__ import annotations

import datetime as dt
import math

from kvray.analysis.comparison import ComparedMetric, Verdict
from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.check.result import (
    CellVerdict,
    Change,
    CheckedCandidate,
    CheckedModel,
    CheckMode,
    CheckResult,
    MeasuredSide,
    MetricVerdict,
    ProcessSample,
    RanFacts,
    SideInfo,
)
from kvray.record import Role, Run, TrialRecord, TrialResult, TrialStatus
from kvray.workload import Cell, WorkloadProfile, get_profile

CELL = Cell(512, 32, 1)
AT = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
RUN = "20260102-000000-aaaa"
PROFILE = WorkloadProfile(
    name="tiny",
    context_lengths=(8,),
    output_lengths=(4,),
    weight_ttft=0.5,
    weight_throughput=0.5,
    weight_memory=0.0,
)


def trial(
    number: int, *, ttft_ms: float, cache: CacheStrategy = CacheStrategy.DYNAMIC, **values: object
) -> TrialResult:
    one = candidate(cache)
    record = TrialRecord.of(
        one,
        run_id=RUN,
        trial_id=f"t{number}-{one.candidate_id}",
        role=Role.CONFIRM if number else Role.BASELINE if cache is CacheStrategy.STATIC else Role.SEARCH,
        model_id="fake:ok",
        profile=PROFILE.name,
        status=TrialStatus.OK,
        **{
            "rung": 1,
            "confirm_round": number or None,
            "started_at": AT,
            "fingerprint": "aaaaaaaa",
            "kernel_decode": "sdpa",
            "kvray_version": "0.1.0",
            "device_name": "a CPU",
            **values,
        },
    )
    run = Run(
        run_id=RUN,
        trial_id=record.trial_id,
        candidate_id=one.candidate_id,
        context_tokens=8,
        output_tokens=4,
        batch_size=1,
        rung=1,
        repeat=0,
        ttft_ms=ttft_ms,
        itl_ms=(1.0,) * 3,
        decode_tok_s=100.0,
        peak_mib=64.0,
        started_at=AT,
    )
    return TrialResult(record=record, runs=(run,))


def candidate(cache: CacheStrategy = CacheStrategy.DYNAMIC) -> Candidate:
    return Candidate(engine="fake", cache=cache, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32)


def side(ttft_ms: float, *, rounds: int = 3, session: str = "s1", kernel: str = "sdpa") -> MeasuredSide:
    logs = (math.log(ttft_ms), math.log(100.0), None)
    return MeasuredSide(
        cells=(CELL,),
        processes=tuple(ProcessSample(round=n + 1, session=session, logs=(logs,)) for n in range(rounds)),
        ran=RanFacts(kernel_prefill=kernel, kernel_decode=kernel, cache_class="FakeDynamic", threads=1),
    )


def checked(**changes: object) -> CheckResult:
    slower = CheckedCandidate(
        label="fake:dynamic/sdpa/float32",
        candidate=candidate(),
        verdict=Verdict.FAIL,
        metrics=(
            MetricVerdict(
                metric=ComparedMetric.TTFT,
                before=10.0,
                now=12.0,
                change=Change(value=0.2, low=0.15, high=0.25),
                margin=0.05,
                verdict=Verdict.FAIL,
            ),
            MetricVerdict(metric=ComparedMetric.MEMORY),
        ),
        cells=(
            CellVerdict(
                cell=CELL,
                metric=ComparedMetric.TTFT,
                change=Change(value=0.2, low=0.1, high=0.3),
                verdict=Verdict.FAIL,
            ),
        ),
        rounds=3,
        before=side(10.0),
        now=side(12.0),
    )
    at = dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC)
    values: dict[str, object] = {
        "kvray_version": "0.1.0",
        "started_at": at,
        "ended_at": at + dt.timedelta(seconds=60),
        "seconds": 60.0,
        "mode": CheckMode.A_B,
        "baseline": "best_plan.json",
        "model_id": "fake:ok",
        "models": {"fake": CheckedModel(model_id="fake:ok", model_revision="1")},
        "device": DeviceType.CPU,
        "device_name": "a CPU",
        "profile": get_profile("ci-micro"),
        "sides": (SideInfo(name="A"), SideInfo(name="B", variables=("OMP_NUM_THREADS",))),
        "candidates": (slower,),
        "verdict": Verdict.FAIL,
        "margins": {ComparedMetric.TTFT: 0.05},
        "budget_s": 600.0,
    }
    return CheckResult(**{**values, **changes})
