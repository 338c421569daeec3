"""Manifests, fingerprints and trials of sweeps that go on."""

from __future__ import annotations

import datetime as dt
from typing import Any

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.record import Role, Run, TrialRecord, TrialResult, TrialStatus
from kvray.store.fingerprint import SweepFingerprint
from kvray.store.manifest import SweepManifest
from kvray.workload import get_profile

RUN_ID = "20260101-120000-abcd"
NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
PROFILE = get_profile("ci-micro")
BASELINE, OTHER, THIRD = (
    Candidate(engine="fake", cache=CacheStrategy.DYNAMIC, attention=attention, dtype=DType.FLOAT32)
    for attention in (AttentionBackend.SDPA, AttentionBackend.EAGER, AttentionBackend.SDPA_MATH)
)


def fingerprint(**changes: Any) -> SweepFingerprint:
    known: dict[str, Any] = {
        "engine": "fake",
        "model_id": "org/model",
        "model_revision": "sha256:aaaa",
        "profile": PROFILE,
        "baseline_id": BASELINE.candidate_id,
        "place": "this machine",
        "device": "cpu",
        "device_name": "a CPU",
        "cpus": 2,
        "memory_gib": 16,
        "threads": 0,
        "slots": 1,
        "torch_version": "2.12.0",
        "transformers_version": "5.20.0",
        "python_version": "3.12",
        "kvray_release": "0.1",
        "variables": {},
    }
    return SweepFingerprint(**{**known, **changes})


def manifest(*, hour: int = 0, **changes: Any) -> SweepManifest:
    """Manifest of an attempt that began `hour` hours after noon."""
    values: dict[str, Any] = {
        "kvray_version": "0.1.0",
        "run_id": RUN_ID,
        "created_at": NOON + dt.timedelta(hours=hour),
        "model_id": "org/model",
        "model_revision": "sha256:aaaa",
        "architecture": "Fake",
        "engine": "fake",
        "device": "cpu",
        "device_name": "a CPU",
        "profile": PROFILE,
        "baseline_id": BASELINE.candidate_id,
        "memory_note": "resident set",
    }
    return SweepManifest(**{**values, **changes})


def trial(
    candidate: Candidate = OTHER,
    status: TrialStatus = TrialStatus.OK,
    *,
    runs: int = 1,
    hour: int = 0,
    **values: Any,
) -> TrialResult:
    settings: dict[str, Any] = {
        "trial_id": f"0001-{candidate.candidate_id}",
        "role": Role.BASELINE if candidate == BASELINE else Role.SEARCH,
        "rung": 2 if runs else None,
        **values,
    }
    started = NOON + dt.timedelta(hours=hour, minutes=5)
    if not status.was_launched:
        runs, started_at = 0, None
    else:
        started_at = started
    record = TrialRecord.of(
        candidate,
        run_id=RUN_ID,
        model_id="org/model",
        profile=PROFILE.name,
        status=status,
        started_at=started_at,
        **settings,
    )
    return TrialResult(record=record, runs=tuple(_run(record, repeat, started) for repeat in range(runs)))


def _run(record: TrialRecord, repeat: int, started: dt.datetime) -> Run:
    return Run(
        run_id=RUN_ID,
        trial_id=record.trial_id,
        candidate_id=record.candidate_id,
        context_tokens=512,
        output_tokens=3,
        batch_size=1,
        rung=2,
        repeat=repeat,
        ttft_ms=100.0,
        itl_ms=(10.0, 30.0),
        decode_tok_s=50.0,
        started_at=started,
    )
