from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import ModelRequest, Observed
from kvray.forecast.prediction import CellForecast, Forecast
from kvray.measuring.recording import blank_record, measured_record
from kvray.probes.disturbance import DeviceState
from kvray.probes.environment import capture_environment
from kvray.record import Role, Run, TrialRecord, TrialStatus
from kvray.trial.events import Sample, TrialFacts
from kvray.trial.spec import TrialSpec
from kvray.workload import Cell, get_profile

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


def record_of(*runs: Run, spec: TrialSpec = SPEC, rung: int | None = 0, **facts: Any) -> TrialRecord:
    return measured_record(
        spec,
        status=TrialStatus.OK,
        phase=None,
        message=None,
        rung=rung,
        runs=runs,
        facts=TrialFacts(pid=1, host="h", niceness=0, cpus=2, **facts),
        environment=capture_environment(DeviceType.CPU),
        started_at=NOW,
        wall_s=2.5,
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


def test_a_record_keeps_tokens_to_compare_with() -> None:
    sample = Sample(cell=Cell(24, 4, 2), tokens=((1, 2, 3), (4, 5, 6)))
    record = record_of(run_of(), sample=sample)
    assert (record.sample_context_tokens, record.sample_tokens) == (24, "[[1, 2, 3], [4, 5, 6]]")
    assert record_of(run_of()).sample_tokens is None


def predicted(output_tokens: int, ttft_ms: float) -> CellForecast:
    return CellForecast(
        cell=Cell(8, output_tokens, 1),
        ttft_ms=ttft_ms,
        decode_tok_s=1250.0,
        peak_mib=64.0,
        held_mib=32.0,
        ideal_decode_tok_s=4000.0,
    )


FORECAST = Forecast.of([predicted(32, 3.0)], [predicted(4, 2.0)])
FORETOLD = replace(SPEC, forecast=FORECAST)


def test_a_record_has_prediction_and_measurement_of_the_same_cells_and_the_share_of_the_roofline() -> None:
    first = record_of(run_of(), spec=FORETOLD)
    foretold = (first.forecast_ttft_ms, first.forecast_decode_tok_s, first.forecast_peak_mib)
    assert foretold == pytest.approx((2.0, 1250.0, 64.0))
    assert first.decode_tok_s == pytest.approx(1000.0)
    assert first.roofline_share == pytest.approx(1000.0 / 4000.0)
    full = record_of(run_of(output_tokens=32, rung=1), spec=FORETOLD, rung=1)
    assert full.forecast_ttft_ms == pytest.approx(3.0)


def test_a_trial_that_measured_nothing_keeps_what_was_predicted() -> None:
    blank = blank_record(FORETOLD, TrialStatus.OOM)
    assert (blank.forecast_ttft_ms, blank.forecast_peak_mib) == pytest.approx((3.0, 64.0))
    assert blank.roofline_share is None
    assert record_of(spec=FORETOLD, rung=None).forecast_ttft_ms == pytest.approx(3.0)


def test_without_a_forecast_these_columns_are_empty() -> None:
    record = record_of(run_of())
    assert (record.forecast_ttft_ms, record.forecast_peak_mib, record.roofline_share) == (None, None, None)


def test_how_long_a_trial_took_does_not_depend_on_the_date() -> None:
    record = record_of(run_of())
    assert record.wall_s == 2.5
    assert record.ended_at == NOW + dt.timedelta(seconds=2.5), "the machine's date has long passed it"


def test_versions_are_those_of_the_process_that_measured() -> None:
    assert record_of(run_of()).engine_versions == ()
    made = record_of(run_of(), engine_versions={"vllm": "0.9.1", "torch": "2.12.0"})
    assert made.engine_versions == (("torch", "2.12.0"), ("vllm", "0.9.1"))
    assert (made.torch_version, made.transformers_version) == ("2.12.0", None)
    assert made.versions == {"torch": "2.12.0", "vllm": "0.9.1"}
    assert made.with_(engine_versions=()).versions == {"torch": "2.12.0"}, "as in older records"


def test_a_record_keeps_what_the_engine_made_of_the_candidate() -> None:
    seen = Observed(resolved={"block_size": 128}).joined(Observed(resolved={"async": True, "backend": "CPU_ATTN"}))
    assert record_of(run_of(), observed=seen).resolved == '{"async": true, "backend": "CPU_ATTN", "block_size": 128}'
    assert record_of(run_of()).resolved is None
