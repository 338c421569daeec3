"""A sweep made of numbers, and the plan of it, for the tests of `kvray.plan`."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvray.analysis import Analysis, analyse
from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.plan.builder import PlanBuilder
from kvray.plan.plan import Plan
from kvray.record import Role, Run, TrialRecord, TrialResult, TrialStatus
from kvray.store.manifest import SweepManifest
from kvray.workload import WorkloadProfile

START = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What `TuningSearch.run()` returns, as far as a plan is concerned."""

    results: Sequence[TrialResult]
    manifest: SweepManifest
    analysis: Analysis
    records_sha256: str = "ab" * 32


def make_profile(**changes: Any) -> WorkloadProfile:
    values: dict[str, Any] = {
        "name": "sample",
        "context_lengths": (128, 512, 2048),
        "output_lengths": (32,),
        "weight_ttft": 0.5,
        "weight_throughput": 0.5,
        "weight_memory": 0.0,
    }
    return WorkloadProfile(**{**values, **changes})


def make_candidate(name: int = 0, *, batch_size: int = 1, engine: str = "fake") -> Candidate:
    return Candidate(
        engine=engine,
        cache=CacheStrategy.DYNAMIC,
        attention=AttentionBackend.SDPA,
        dtype=DType.FLOAT32,
        batch_size=batch_size,
        cache_params=(("window", 100 + name),),
    )


def make_result(
    name: int,
    profile: WorkloadProfile,
    *,
    ttft_ms: float | Mapping[int, float] = 100.0,
    decode_tok_s: float = 50.0,
    peak_mib: float | None = 1000.0,
    batch_size: int = 1,
    role: Role = Role.SEARCH,
    engine: str = "fake",
    **values: Any,
) -> TrialResult:
    """An ok trial with two runs per cell; `ttft_ms` can differ by context."""
    trial_id = f"p{next(_numbers):05d}"
    record = TrialRecord.of(
        make_candidate(name, batch_size=batch_size, engine=engine),
        run_id="r1",
        trial_id=trial_id,
        role=role,
        model_id="m",
        profile=profile.name,
        status=TrialStatus.OK,
        **values,
    )
    runs = tuple(
        Run(
            run_id="r1",
            trial_id=trial_id,
            candidate_id=record.candidate_id,
            context_tokens=cell.context_tokens,
            output_tokens=cell.output_tokens,
            batch_size=cell.batch_size,
            rung=rung,
            repeat=0,
            ttft_ms=ttft_ms[cell.context_tokens] if isinstance(ttft_ms, Mapping) else ttft_ms,
            itl_ms=(20.0, 21.0),
            decode_tok_s=decode_tok_s,
            peak_mib=peak_mib,
            started_at=START,
        )
        for cell in profile.cells(batch_size, rung=2)
        for rung in (1, 2)
    )
    return TrialResult(record=record, runs=runs)


def make_sweep(*results: TrialResult, profile: WorkloadProfile, **manifest: Any) -> Sweep:
    values: dict[str, Any] = {
        "kvray_version": "0.1.0",
        "run_id": "r1",
        "created_at": START,
        "model_id": "org/model",
        "model_revision": "abc",
        "architecture": "LlamaForCausalLM",
        "engine": "fake",
        "device": "cuda",
        "device_name": "A GPU",
        "profile": profile,
        "baseline_id": make_candidate(0).candidate_id,
        "memory_note": "note",
    }
    about = SweepManifest(**{**values, **manifest})
    return Sweep(results=results, manifest=about, analysis=analyse(results, profile, defaults=about.defaults))


def make_plan(**manifest: Any) -> Plan:
    """Baseline 0; winner 1; 2 and 3 are slower and leaner."""
    profile = make_profile()
    results = (
        make_result(0, profile, role=Role.BASELINE),
        make_result(1, profile, ttft_ms=50.0, device_name="A GPU", torch_version="2.13"),
        make_result(2, profile, ttft_ms=200.0, peak_mib=800.0),
        make_result(3, profile, ttft_ms=400.0, peak_mib=600.0),
    )
    return PlanBuilder(make_sweep(*results, profile=profile, **manifest)).build()
