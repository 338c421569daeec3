"""How a job stands: on one screen for a person, as JSON for a program."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

from kvray.cli.following import how_to_go_on, place_of, why_it_failed
from kvray.cli.job_events import BatchState, JobLog
from kvray.jobs.client import Job, JobState
from kvray.tuning.best_so_far import CandidateState
from kvray.tuning.standing import RUNNING

_SHOWN_COMMAND = 230
"""Characters: three lines of a terminal; the JSON has all of it."""
_SHOWN_RUNNING = 4


def list_line(job: Job) -> str:
    """The job in one line of `kvray jobs list`."""
    return f"{job.job_id}  {job.state.value.lower():<9}  {_date(job.started)}  {job.command}"


def job_json(job: Job) -> dict[str, Any]:
    """What the cluster knows of the job."""
    return {
        "job_id": job.job_id,
        "state": job.state.value.lower(),
        "started": _iso(job.started),
        "ended": _iso(job.ended),
        "exit_code": job.exit_code,
        "command": job.command,
    }


def status_lines(job: Job, log: JobLog, *, address: str) -> Iterator[str]:
    """At most 24 lines on a terminal of 80 columns."""
    rows = {
        "job": f"{job.job_id} · {job.state.value.lower()} · started {_date(job.started)}",
        "command": _shortened(f"kvray {job.command}", _SHOWN_COMMAND),
        **(_sweep_rows(log) if log.batch is None else _batch_rows(log.batch)),
        "results": _results(job, log),
        **_ended_rows(job, log, address),
    }
    return (f"{name + ':':<9} {text}" for name, text in rows.items() if text)


def status_json(job: Job, log: JobLog, *, address: str) -> dict[str, Any]:
    """What the cluster knows of the job, and what its log tells. `None` stands for what is not there, or not yet."""
    return {
        **job_json(job),
        "sweep": _sweep_json(log) if log.run_id and log.batch is None else None,
        "batch": None if log.batch is None else _batch_json(log.batch),
        "results": log.output if log.results_id else None,
        "failed": _failure(job, log),
        "to_go_on": _to_go_on(job, log, address),
    }


def _sweep_rows(log: JobLog) -> dict[str, str]:
    state = log.state
    return {
        "sweep": f"{log.run_id} · {state.title}" if log.run_id else "not begun",
        "trials": ", ".join(f"{count} {name}" for name, count in state.counts().items()) or "none yet",
        "now": _running_text(log),
        **_best_rows(log),
        "time": f"{state.time_line()}{_as_of(log)}" if log.run_id else "",
    }


def _ended_rows(job: Job, log: JobLog, address: str) -> dict[str, str]:
    failure, to_go_on = _failure(job, log), _to_go_on(job, log, address)
    return {"go on" if failure is None else "failed": " ".join(filter(None, (failure, to_go_on)))}


def _best_rows(log: JobLog) -> dict[str, str]:
    """The verdict of a sweep that was written up; before that, what is best so far by all processes."""
    if log.verdicts:
        return {"result": "; ".join(log.verdicts)}
    return {"best": f"so far {log.state.best_text()}", "gain": log.state.gain_line() or ""}


def _as_of(log: JobLog) -> str:
    """A running sweep tells how it stands when something happens, and at least once a minute."""
    if log.told_at is None or log.verdicts:
        return ""
    return f" · as of {dt.datetime.fromtimestamp(log.told_at):%H:%M:%S}"


def _running_text(log: JobLog) -> str:
    labels = [one.label for one in log.state.standings.values() if one.state == RUNNING]
    more = f" and {len(labels) - _SHOWN_RUNNING} more" if len(labels) > _SHOWN_RUNNING else ""
    return f"{', '.join(labels[:_SHOWN_RUNNING])}{more}"


def _batch_rows(batch: BatchState) -> dict[str, str]:
    now = _shortened(batch.now, _SHOWN_COMMAND)
    return {
        "batch": f"{batch.batch_id} · {batch.progress}",
        "sweeps": batch.by_status,
        "doubt": batch.doubt,
        "now": now,
    }


def _sweep_json(log: JobLog) -> dict[str, Any]:
    state, so_far, left_s = log.state, log.state.so_far, log.state.left_s()
    gain = so_far.gain()
    return {
        "run_id": log.run_id,
        "title": state.title,
        "trials": state.counts(),
        "running": [one.label for one in state.standings.values() if one.state == RUNNING],
        "candidates": state.total,
        "tried": state.finished,
        "best": _figures(so_far.best()),
        "baseline": _figures(so_far.baseline()),
        "gain": None if gain is None else {"ttft_speedup": 1 + gain.ttft, "decode_speedup": 1 + gain.throughput},
        "left_s": None if left_s is None else list(left_s),
        "as_of": _iso(log.told_at),
        "verdicts": list(log.verdicts),
    }


def _figures(one: CandidateState | None) -> dict[str, Any] | None:
    if one is None:
        return None
    metrics = one.metrics
    return {
        "label": one.label,
        "ttft_ms": metrics.ttft_ms,
        "decode_tok_s": metrics.decode_tok_s,
        "peak_mib": metrics.peak_mib,
        "rests_on_disturbed": one.rests_on_disturbed,
    }


def _batch_json(batch: BatchState) -> dict[str, Any]:
    return {"batch_id": batch.batch_id, "sweeps": dict(batch.statuses), "now": batch.now}


def _results(job: Job, log: JobLog) -> str:
    if log.results_id is None or log.output is None:
        return "none" if job.state.is_over else "none yet"
    return place_of(log.output)


def _failure(job: Job, log: JobLog) -> str | None:
    return why_it_failed(job, log) if job.state is JobState.FAILED else None


def _to_go_on(job: Job, log: JobLog, address: str) -> str | None:
    return how_to_go_on(address, job, log) if job.state in (JobState.FAILED, JobState.STOPPED) else None


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _date(seconds: float | None) -> str:
    return "" if seconds is None else f"{dt.datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")
