"""An alert as the JSON object that a webhook and a command get. docs/schema/watch_event.schema.json describes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvray.check.watch.events import Observation, WatchEvent
from kvray.files.redaction import redact
from kvray.report import formats

EVENT_VERSION = 1
Message = Mapping[str, Any]
"""An alert as JSON: the key `event_id` names it, `text` says it in a sentence."""


def alert_message(event: WatchEvent) -> Message:
    """The event, what it is about, and what was observed; without secrets and signs that no reader can see."""
    about = event.observation
    message = {
        "event_version": EVENT_VERSION,
        **event.to_dict(),
        "metric_title": event.metric.title if event.metric else None,
        "unit": event.metric.unit if event.metric else None,
        "model": about.model_id if about else None,
        "engine": about.engine if about else None,
        "profile": about.profile if about else None,
        "candidate_id": about.candidate_id if about else None,
        "device": about.device_name if about else None,
        "host": about.host if about else None,
        "observation": None if about is None else _observed(about),
    }
    return {key: _cleaned(value) for key, value in message.items()}


def _observed(one: Observation) -> dict[str, Any]:
    return {
        "observed_at": one.observed_at.isoformat(),
        "processes": one.processes,
        "disturbed": one.disturbed,
        "ttft_ms": one.ttft_ms,
        "decode_tok_s": one.decode_tok_s,
        "peak_mib": one.peak_mib,
        "copy_gb_s": one.copy_gb_s,
        "matmul_gflop_s": one.matmul_gflop_s,
        "kernels": one.kernels,
        "driver_version": one.driver_version,
        "python_version": one.python_version,
        "kvray_version": one.kvray_version,
        "engine_versions": dict(one.engine_versions),
    }


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return redact(formats.clean(value))
    if isinstance(value, dict):
        return {key: _cleaned(inner) for key, inner in value.items()}
    return value
