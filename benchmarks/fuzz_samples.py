"""Valid data for `fuzz.py` to start from, made by kvray's own code: a sweep's records, its plan, tiny models."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

from kvray.analysis import analyse
from kvray.candidate import AttentionBackend, CacheChoice, Candidate, DType
from kvray.plan.builder import PlanBuilder
from kvray.record import Role, Run, TrialRecord, TrialResult, TrialStatus
from kvray.store.fingerprint import SweepFingerprint
from kvray.store.manifest import SweepAttempt, SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.tuning.result import TuneResult
from kvray.workload import WorkloadProfile

RUN_ID = "20260102-030405-fuzz"
START = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
PROFILE = WorkloadProfile(
    name="fuzzed",
    description="Two cells.",
    context_lengths=(16, 64),
    output_lengths=(4,),
    repeats=2,
    weight_ttft=0.5,
    weight_throughput=0.3,
    weight_memory=0.2,
)
CANDIDATES = tuple(
    Candidate(
        engine="transformers",
        cache=choice.strategy,
        cache_params=choice.params,
        attention=AttentionBackend.SDPA,
        dtype=DType.FLOAT32,
    )
    for choice in map(CacheChoice.parse, ("dynamic", "static", "quantized(backend=hqq,nbits=4)"))
)


def results() -> list[TrialResult]:
    """Two complete trials, baseline first, and one that failed."""
    measured = [_measured(one, number) for number, one in enumerate(CANDIDATES[:2])]
    failed = _record(CANDIDATES[2], 2, TrialStatus.OOM, message="no memory", log_tail="Traceback …")
    return [*measured, TrialResult(record=failed)]


def manifest() -> SweepManifest:
    """Manifest of these results, whose sweep was gone on with after torch had changed."""
    return SweepManifest(
        kvray_version="0.1.0",
        run_id=RUN_ID,
        created_at=START,
        model_id="org/model",
        model_revision="abc",
        architecture="LlamaForCausalLM",
        engine="transformers",
        device="cpu",
        device_name="A CPU",
        profile=PROFILE,
        baseline_id=CANDIDATES[0].candidate_id,
        memory_note="Of the process.",
        left_out=(("dtype", "float16", "emulated"),),
        search="model",
        arguments=("org/model", "--profile", "fuzzed"),
        attempts=(_attempt("2.12", None), _attempt("2.13", START)),
    )


def _fingerprint(torch_version: str) -> SweepFingerprint:
    return SweepFingerprint(model_id="org/model", profile=PROFILE, torch_version=torch_version, variables={"LANG": "C"})


def _attempt(torch_version: str, ended_at: dt.datetime | None) -> SweepAttempt:
    fingerprint = _fingerprint(torch_version)
    return SweepAttempt(
        started_at=START,
        ended_at=ended_at,
        kvray_version="0.1.0",
        candidates=len(CANDIDATES),
        fingerprint_id=fingerprint.digest,
        fingerprint=fingerprint,
    )


def plan() -> dict[str, Any]:
    """The plan of these results, as its file has it."""
    found = results()
    result = TuneResult(
        manifest=manifest(),
        results=tuple(found),
        analysis=analyse(found, PROFILE),
        records_sha256="ab" * 32,
        paths=ResultsStore("unused").paths(RUN_ID),
    )
    data: dict[str, Any] = json.loads(PlanBuilder(result).build().to_json())
    return data


def write_results(folder: Path) -> ResultsStore:
    """A results folder with the manifest and a file for each trial."""
    store = ResultsStore(folder)
    store.write_manifest(manifest())
    for result in results():
        store.append(result)
    return store


def _measured(candidate: Candidate, number: int) -> TrialResult:
    record = _record(candidate, number, TrialStatus.OK, ttft_ms=100.0 - number, decode_tok_s=50.0, peak_mib=900.0)
    runs = tuple(
        Run(
            run_id=RUN_ID,
            trial_id=record.trial_id,
            candidate_id=record.candidate_id,
            context_tokens=cell.context_tokens,
            output_tokens=cell.output_tokens,
            batch_size=cell.batch_size,
            rung=2,
            repeat=repeat,
            ttft_ms=100.0 - 20 * number + repeat,
            itl_ms=(20.0, 21.0, 20.0),
            decode_tok_s=50.0 + number,
            peak_mib=900.0 - 50 * number,
            started_at=START,
        )
        for cell in PROFILE.cells(candidate.batch_size, rung=2)
        for repeat in range(PROFILE.repeats)
    )
    return TrialResult(record=record, runs=runs)


def _record(candidate: Candidate, number: int, status: TrialStatus, **values: Any) -> TrialRecord:
    return TrialRecord.of(
        candidate,
        run_id=RUN_ID,
        trial_id=f"t-{number}",
        role=Role.SEARCH if number else Role.BASELINE,
        model_id="org/model",
        profile=PROFILE.name,
        status=status,
        rung=2,
        started_at=START,
        ended_at=START,
        device_name="A CPU",
        torch_version="2.13",
        fingerprint=_fingerprint("2.13").digest,
        **values,
    )
