"""A trial measured in this very process and kept as a sweep keeps it: real records without Ray."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import EngineAdapter, ModelRequest
from kvray.measuring.recording import measured_record
from kvray.probes.environment import capture_environment
from kvray.record import Role, TrialResult
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.trial.child import _run
from kvray.trial.events import RunFinished, TrialEnded
from kvray.trial.protocol import TrialProtocol
from kvray.trial.spec import LAST_RUNG, TrialSpec
from kvray.tuning.result import TuneResult, read_result
from kvray.workload import create_custom_profile

PROFILE = create_custom_profile(
    "here",
    context_lengths=(24, 40),
    output_lengths=(8,),
    repeats=1,
    weight_ttft=0.4,
    weight_throughput=0.4,
    weight_memory=0.2,
)
RUN_ID = "20260101-000000-here"
_STARTED = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def measured_here(adapter: EngineAdapter, request: ModelRequest, candidate: Candidate) -> TrialResult:
    """A complete trial of `candidate`."""
    spec = TrialSpec(
        run_id=RUN_ID,
        trial_id=candidate.candidate_id,
        role=Role.BASELINE,
        request=request,
        candidate=candidate,
        profile=PROFILE,
        device=DeviceType.CPU,
        timeout_s=240.0,
    )
    runs = []

    def emit(event: object) -> None:
        if isinstance(event, RunFinished):
            runs.append(event.run)

    end = _run(
        TrialProtocol(spec, adapter, emit=emit, may_continue=lambda: True, device_memory_mib=lambda _: None),
    )
    assert isinstance(end, TrialEnded)
    record = measured_record(
        spec,
        status=end.status,
        phase=end.phase,
        message=end.message,
        rung=LAST_RUNG,
        runs=runs,
        facts=end.facts,
        environment=capture_environment(DeviceType.CPU),
        started_at=_STARTED,
        wall_s=1.0,
        log_tail=None,
    )
    return TrialResult(record=record, runs=tuple(runs))


def kept(folder: Path, adapter: EngineAdapter, request: ModelRequest, *results: TrialResult) -> TuneResult:
    """The sweep with those trials, read back from `folder`; the first is the baseline."""
    info = adapter.describe_model(request)
    store = ResultsStore(folder)
    store.write_manifest(
        SweepManifest(
            kvray_version="0",
            run_id=RUN_ID,
            created_at=_STARTED,
            model_id=info.model_id,
            model_revision=info.revision,
            architecture=info.architecture,
            loader=info.loader,
            engine=adapter.name,
            device=DeviceType.CPU,
            device_name="CPU",
            profile=PROFILE,
            baseline_id=results[0].record.candidate_id,
            memory_note="A note.",
            trust_remote_code=request.trust_remote_code,
            allow_pickle=request.allow_pickle,
        )
    )
    for result in results:
        store.append(result)
    return read_result(store, RUN_ID)
