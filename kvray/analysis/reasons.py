"""Why a trial is not ranked, as sentences for people."""

from __future__ import annotations

from kvray.record import Phase, TrialRecord, TrialStatus

_WHAT_HAPPENED = {
    TrialStatus.OOM: "ran out of memory",
    TrialStatus.TIMEOUT: "took longer than allowed",
    TrialStatus.CRASHED: "its process died",
    TrialStatus.UNSUPPORTED: "not supported by the engine",
    TrialStatus.SUBSTITUTED: "something other than what was asked for ran",
    TrialStatus.QUALITY: "loses more quality than allowed",
    TrialStatus.REJECTED: "not launched because it cannot work",
    TrialStatus.SKIPPED: "not launched by the search",
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


def status_reason(record: TrialRecord) -> str:
    """How a trial that did not end ok ended, with its own message."""
    if record.status.is_cut_short:
        after = "before its first rung was complete" if record.rung is None else f"after rung {record.rung}"
        text = f"{record.status} {after}"
    else:
        text = _WHAT_HAPPENED[record.status]
        if record.phase is not None and record.status in _PHASE_EXPLAINS:
            text = f"{text} {_DURING[record.phase]}"
    return f"{text}: {record.message}" if record.message else text


def allowed_now_reason(record: TrialRecord) -> str:
    """Why a trial that was ended for a loss of quality is not ranked by a limit that allows the loss."""
    rung = "" if record.rung is None else f" after rung {record.rung}"
    was = f" ({record.message})" if record.message else ""
    return (
        f"ended{rung} because its loss of quality was over the limit of that time{was}; today's limit allows it, so "
        "--resume measures it completely"
    )
