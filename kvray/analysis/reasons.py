"""Why a trial is not ranked, as sentences for people."""

from __future__ import annotations

from kvray.analysis.aggregate import Metrics
from kvray.record import Phase, TrialRecord, TrialStatus
from kvray.workload import Limits

_WHAT_HAPPENED = {
    TrialStatus.OOM: "ran out of memory",
    TrialStatus.TIMEOUT: "took longer than allowed",
    TrialStatus.CRASHED: "its process died",
    TrialStatus.UNSUPPORTED: "not supported by the engine",
    TrialStatus.SUBSTITUTED: "something other than what was asked for ran",
    TrialStatus.QUALITY: "loses more quality than allowed",
    TrialStatus.REJECTED: "not launched, it cannot work",
    TrialStatus.SKIPPED: "not launched, the search gave it no chance",
    TrialStatus.ERROR: "failed with an error",
}
_DURING = {
    Phase.START: "while starting",
    Phase.PREPARE: "while preparing",
    Phase.LOAD: "while loading the model",
    Phase.WARMUP: "while warming up",
    Phase.MEASURE: "while measuring",
    Phase.REFERENCE: "while making the reference for quality",
    Phase.QUALITY: "while measuring quality",
}
_PHASE_EXPLAINS = (TrialStatus.OOM, TrialStatus.TIMEOUT, TrialStatus.CRASHED, TrialStatus.ERROR)


def missed_limits(metrics: Metrics, limits: Limits) -> tuple[str, ...]:
    """Each of `limits` that `metrics` do not keep, with both numbers."""
    misses = []
    if limits.max_ttft_ms is not None and metrics.ttft_ms > limits.max_ttft_ms:
        misses.append(f"TTFT {_figure(metrics.ttft_ms)} ms is over the limit of {_figure(limits.max_ttft_ms)} ms")
    if limits.min_decode_tok_s is not None and metrics.decode_tok_s < limits.min_decode_tok_s:
        misses.append(
            f"decode throughput {_figure(metrics.decode_tok_s)} tok/s is under the limit of "
            f"{_figure(limits.min_decode_tok_s)} tok/s"
        )
    if limits.max_peak_mib is not None:
        limit = _figure(limits.max_peak_mib)
        if metrics.peak_mib is None:
            misses.append(f"peak memory was not measured, so the limit of {limit} MiB cannot be checked")
        elif metrics.peak_mib > limits.max_peak_mib:
            misses.append(f"peak memory {_figure(metrics.peak_mib)} MiB is over the limit of {limit} MiB")
    return tuple(misses)


def status_reason(record: TrialRecord) -> str:
    """How a trial that did not end ok ended, with its own message."""
    if record.status is TrialStatus.STOPPED:
        after = "before its first rung was complete" if record.rung is None else f"after rung {record.rung}"
        text = f"stopped {after}"
    else:
        text = _WHAT_HAPPENED[record.status]
        if record.phase is not None and record.status in _PHASE_EXPLAINS:
            text = f"{text} {_DURING[record.phase]}"
    return f"{text}: {record.message}" if record.message else text


def _figure(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")
