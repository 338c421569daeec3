"""Puts a trial's record together from what its process said and what the machine is."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any

from kvray.analysis.aggregate import CellMetrics, Metrics, aggregate, aggregate_cells, runs_at_rung
from kvray.files.redaction import redact
from kvray.forecast.prediction import Forecast
from kvray.probes.environment import Environment
from kvray.record import Phase, Run, TrialRecord, TrialStatus, version_fields
from kvray.trial.events import TrialFacts
from kvray.trial.spec import TrialSpec

Columns = dict[str, float | None]


def rung_metrics(runs: Sequence[Run], rung: int | None) -> Metrics | None:
    """Metrics over the cells of `rung`, `None` before the first rung is complete."""
    cells = rung_cells(runs, rung)
    return aggregate(cells) if cells else None


def rung_cells(runs: Sequence[Run], rung: int | None) -> tuple[CellMetrics, ...]:
    """Metrics of each cell of `rung`, none before the first rung is complete."""
    return () if rung is None else aggregate_cells(runs_at_rung(runs, rung))


def blank_record(spec: TrialSpec, status: TrialStatus, *, message: str | None = None) -> TrialRecord:
    """The record of a trial of which nothing but its end is known."""
    return TrialRecord.of(
        spec.candidate,
        run_id=spec.run_id,
        trial_id=spec.trial_id,
        role=spec.role,
        confirm_round=spec.confirm_round,
        model_id=spec.request.model_id,
        profile=spec.profile.name,
        status=status,
        message=message,
        fingerprint=spec.fingerprint,
        gpu_type=spec.gpu_type,
        **forecast_columns(spec.forecast),
    )


def forecast_columns(forecast: Forecast | None, metrics: Metrics | None = None, *, rung: int | None = None) -> Columns:
    """A record's columns of what was predicted for the cells of `rung` (at full length where it has none), and the
    share of the roofline that the measured `metrics` reach."""
    if forecast is None:
        return {}
    same_cells = forecast if rung is None else forecast.at_rung(rung)
    return {
        "forecast_ttft_ms": same_cells.ttft_ms,
        "forecast_decode_tok_s": same_cells.decode_tok_s,
        "forecast_peak_mib": same_cells.peak_mib,
        "roofline_share": None if metrics is None else same_cells.roofline_share(metrics.decode_tok_s),
    }


def measured_record(
    spec: TrialSpec,
    *,
    status: TrialStatus,
    phase: Phase | None,
    message: str | None,
    rung: int | None,
    runs: Sequence[Run],
    facts: TrialFacts | None,
    environment: Environment,
    started_at: dt.datetime,
    wall_s: float,
    log_tail: str | None,
    hardware: str | None = None,
) -> TrialRecord:
    """The record of a trial that was launched, as far as it has come; what its process said is without secrets.

    Args:
        wall_s: since its start, by a clock that nobody sets: `ended_at` follows from it, so no trial ends before it
            began.
        hardware: digest of the node that measured, on a cluster.
    """
    metrics = rung_metrics(runs, rung)
    reserved = [run.reserved_peak_mib for run in runs if run.reserved_peak_mib is not None]
    columns: dict[str, Any] = {
        "phase": phase,
        "log_tail": _redacted(log_tail),
        "rung": rung,
        "started_at": started_at,
        "ended_at": started_at + dt.timedelta(seconds=wall_s),
        "wall_s": wall_s,
        "host": environment.host,
        "device_name": environment.device_name,
        "device_uuid": environment.device_uuid,
        "driver_version": environment.driver_version,
        "kvray_version": environment.kvray_version,
        "hardware": hardware,
        "reserved_peak_mib": max(reserved, default=None),
        **_versions(environment.engine_versions),
    }
    if metrics is not None:
        columns |= {**vars(metrics), **forecast_columns(spec.forecast, metrics, rung=rung)}
    if facts is not None:
        columns |= _facts_columns(facts)
    return blank_record(spec, status, message=_redacted(message)).with_(**columns)


def _versions(versions: Mapping[str, str]) -> dict[str, Any]:
    return {"engine_versions": tuple(sorted(versions.items())), **version_fields(versions)}


def _redacted(text: str | None) -> str | None:
    return None if text is None else redact(text)


def _facts_columns(facts: TrialFacts) -> dict[str, Any]:
    observed, compiled = facts.observed, facts.compilation
    return {
        **({} if facts.quality is None else vars(facts.quality)),
        **({} if facts.engine_versions is None else _versions(facts.engine_versions)),
        "pid": facts.pid,
        "niceness": facts.niceness,
        "cpus": facts.cpus,
        "cpu_quota": facts.cpu_quota,
        "busy_s": facts.busy_s,
        "proof_s": facts.proof_s,
        "load_s": facts.load_s,
        "compile_s": facts.compile_s,
        "first_call_s": facts.first_call_s,
        "warmup_s": facts.warmup_s,
        "cold_s": facts.cold_s,
        "warmed_up": facts.warmed_up,
        "kv_cache_mib": facts.kv_cache_mib,
        "library_mib": facts.library_mib,
        "device_peak_mib": facts.device_peak_mib,
        "device_peak_gpu_mib": facts.device_peak_gpu_mib,
        "gpu_clock_mhz": facts.device_state.clock_mhz,
        "gpu_temperature_c": facts.device_state.temperature_c,
        "gpu_power_w": facts.device_state.power_w,
        "quality_s": facts.quality_s,
        "quality_note": _redacted(facts.quality_note),
        "sample_context_tokens": facts.sample.cell.context_tokens if facts.sample else None,
        "sample_tokens": json.dumps(facts.sample.tokens) if facts.sample else None,
        "forced_logs": facts.forced.to_json() if facts.forced else None,
        "processors": observed.processors,
        "processor_share": observed.processor_share,
        "threads": observed.threads,
        "cache_class": observed.cache_class,
        "cache_layers": observed.cache_layers,
        "kernel_prefill": observed.kernel_prefill,
        "kernel_decode": observed.kernel_decode,
        "graph_breaks": compiled.graph_breaks if compiled else None,
        "recompiles": compiled.recompiles if compiled else None,
        "compile_cold": compiled.is_cold if compiled else None,
        "kv_dtype": observed.kv_dtype,
        "resolved": json.dumps(dict(sorted(observed.resolved.items()))) if observed.resolved else None,
    }
