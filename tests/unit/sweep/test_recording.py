from __future__ import annotations

import datetime as dt
from typing import Any

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import ModelRequest
from kvray.probes.disturbance import DeviceState
from kvray.probes.environment import capture_environment
from kvray.record import Role, Run, TrialRecord, TrialStatus
from kvray.sweep.recording import measured_record
from kvray.trial.events import TrialFacts
from kvray.trial.spec import TrialSpec
from kvray.workload import get_profile

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SPEC = TrialSpec(
    run_id="r",
    trial_id="t",
    role=Role.SEARCH,
    request=ModelRequest(model_id="fake:ok"),
    candidate=Candidate(
        engine="fake", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32
    ),
    profile=get_profile("ci-micro"),
    device=DeviceType.CPU,
    timeout_s=1.0,
)


def run_of(**values: Any) -> Run:
    shape: dict[str, Any] = {"context_tokens": 8, "output_tokens": 4, "batch_size": 1, "rung": 0, "repeat": 0}
    speed: dict[str, Any] = {"ttft_ms": 1.0, "itl_ms": (1.0, 1.0, 1.0), "decode_tok_s": 1000.0}
    return Run(run_id="r", trial_id="t", candidate_id="c", started_at=NOW, **{**shape, **speed, **values})


def record_of(*runs: Run, **facts: Any) -> TrialRecord:
    return measured_record(
        SPEC,
        status=TrialStatus.OK,
        phase=None,
        message=None,
        rung=0,
        runs=runs,
        facts=TrialFacts(pid=1, host="h", niceness=0, cpus=2, **facts),
        environment=capture_environment(DeviceType.CPU),
        started_at=NOW,
        log_tail=None,
    )


def test_a_record_has_the_energy_of_a_token_in_calm_runs() -> None:
    calm, disturbed = run_of(energy_j=8.0), run_of(energy_j=800.0, disturbed=True, repeat=1)
    assert record_of(calm, disturbed).energy_j_per_tok == 2.0
    assert record_of(run_of()).energy_j_per_tok is None


def test_a_record_has_the_highest_reserved_memory_of_any_run() -> None:
    runs = run_of(reserved_peak_mib=96.0), run_of(reserved_peak_mib=128.0, disturbed=True), run_of()
    assert record_of(*runs).reserved_peak_mib == 128.0
    assert record_of(run_of()).reserved_peak_mib is None


def test_a_record_tells_cold_costs_and_the_device_s_state() -> None:
    state = DeviceState(clock_mhz=1980.0, temperature_c=61.0, power_w=300.0)
    record = record_of(run_of(), cold_s=3.5, warmed_up=False, device_state=state)
    assert (record.cold_s, record.warmed_up) == (3.5, False)
    assert (record.gpu_clock_mhz, record.gpu_temperature_c, record.gpu_power_w) == (1980.0, 61.0, 300.0)
