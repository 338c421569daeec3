"""How a job stands: on one screen, and as JSON."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from test_ended_jobs import failed

from kvray.analysis.aggregate import Metrics
from kvray.cli import jobs
from kvray.cli.job_events import JobLog
from kvray.cli.job_status import status_json, status_lines
from kvray.jobs.client import Job, JobState
from kvray.jobs.doorman import MARK
from kvray.tuning.best_so_far import CandidateState
from kvray.tuning.standing import TrialState

METRICS = Metrics(ttft_ms=1.0, itl_p50_ms=1.0, itl_p95_ms=1.0, itl_p99_ms=1.0, decode_tok_s=100.0, peak_mib=50.0)
ADDRESS = "http://a-head-with-a-long-name.example.org:8265"
COMMAND = "tune org/a-model " + " ".join(f"--set axis_{number}=1,2,3" for number in range(60))


def measured(label: str, state: str, ttft_ms: float | None = None) -> dict[str, Any]:
    metrics = None if ttft_ms is None else dataclasses.replace(METRICS, ttft_ms=ttft_ms)
    return dataclasses.asdict(TrialState(label=label, state=state, trial_id=label, metrics=metrics))


def candidate_of(trial: dict[str, Any], *, rests_on_disturbed: bool) -> dict[str, Any]:
    """The candidate of a trial that ended ok."""
    state = CandidateState(
        label=trial["label"],
        candidate_id=trial["label"],
        metrics=Metrics(**trial["metrics"]),
        utility=-trial["metrics"]["ttft_ms"],
        is_baseline=trial["label"] == "c0",
        rests_on_disturbed=rests_on_disturbed,
    )
    return dataclasses.asdict(state)


def log_of(trials: list[dict[str, Any]], *, disturbed: Sequence[str] = ()) -> JobLog:
    log = JobLog()
    ended = [one for one in trials if one["metrics"] is not None]
    candidates = [candidate_of(one, rests_on_disturbed=one["label"] in disturbed) for one in ended]
    outlook = {"confirming": 0, "confirming_most": 0, "left_s": [60.0, 90.0], "gpu_type": None}
    sweep = {"title": "a-model · chat · GPU (cuda)", "total": 200, "budget_s": None, "recalled": ""}
    for event in (
        {"event": "accepted", "output": "/home/a-user/kvray_results", "lines": 0},
        {"run_id": "20260101-000000-abcd", "sweep": sweep, "trials": trials, "candidates": candidates, "lines": 0},
        {"finished": 2, "passed_s": 100.0, "outlook": outlook, "lines": 0},
    ):
        log.feed(f"{MARK}{json.dumps(event)}\n")
    return log


def running(command: str = "tune m") -> Job:
    return dataclasses.replace(failed(command, exit_code=None), state=JobState.RUNNING, started=1767225600.0)


def test_the_json_of_a_running_sweep_tells_what_a_program_wants_to_know() -> None:
    log = log_of([measured("c0", "ok", 20.0), measured("c1", "ok", 10.0), measured("c2", "running")])
    found = json.loads(json.dumps(status_json(running(), log, address=ADDRESS)))
    left = found["sweep"].pop("left_s")
    assert 0 < left[0] <= left[1] <= 90
    assert found["sweep"].pop("gain") == {"ttft_speedup": 2.0, "decode_speedup": 1.0}
    assert found == {
        "job_id": "raysubmit_1",
        "state": "running",
        "started": "2026-01-01T00:00:00+00:00",
        "ended": None,
        "exit_code": None,
        "command": "tune m",
        "batch": None,
        "results": "/home/a-user/kvray_results",
        "failed": None,
        "to_go_on": None,
        "sweep": {
            "run_id": "20260101-000000-abcd",
            "title": "a-model · chat · GPU (cuda)",
            "trials": {"running": 1, "ok": 2},
            "running": ["c2"],
            "candidates": 200,
            "tried": 2,
            "as_of": None,
            "verdicts": [],
            "best": {
                "label": "c1",
                "ttft_ms": 10.0,
                "decode_tok_s": 100.0,
                "peak_mib": 50.0,
                "rests_on_disturbed": False,
            },
            "baseline": {
                "label": "c0",
                "ttft_ms": 20.0,
                "decode_tok_s": 100.0,
                "peak_mib": 50.0,
                "rests_on_disturbed": False,
            },
        },
    }


def test_the_json_of_a_killed_job_tells_why_and_how_to_go_on() -> None:
    found = status_json(failed("tune m", exit_code=-9), log_of([measured("c0", "ok", 20.0)]), address=ADDRESS)
    assert found["failed"] == "its driver was killed (signal 9)."
    assert found["to_go_on"].endswith(f"kvray submit --address {ADDRESS} tune m --resume 20260101-000000-abcd")


def test_the_json_of_a_batch_has_its_sweeps_by_status() -> None:
    log = JobLog()
    told = {"batch_id": "b1", "statuses": {"ok": 1, "measuring": 1}, "now": "m · p"}
    log.feed(f"{MARK}{json.dumps({'batch': told, 'lines': 0})}\n")
    found = status_json(running("batch m.yaml"), log, address=ADDRESS)
    assert (found["sweep"], found["results"]) == (None, None)
    assert found["batch"] == {"batch_id": "b1", "sweeps": {"ok": 1, "measuring": 1}, "now": "m · p"}


def stopped() -> Job:
    return dataclasses.replace(failed("tune m", exit_code=None), state=JobState.STOPPED)


def test_a_stopped_job_says_how_to_go_on() -> None:
    log = log_of([measured("c0", "ok", 20.0)])
    log.freeze()
    (line,) = [one for one in status_lines(stopped(), log, address=ADDRESS) if one.startswith("go on:")]
    assert line.endswith(f"kvray submit --address {ADDRESS} tune m --resume 20260101-000000-abcd")
    assert status_json(stopped(), log, address=ADDRESS)["to_go_on"] is not None
    assert status_json(stopped(), JobLog(), address=ADDRESS)["to_go_on"] is None, "nothing was measured"


def test_a_best_that_was_disturbed_is_told_as_such() -> None:
    trials = [measured("c0", "ok", 20.0), measured("c1", "ok", 10.0)]
    lines = list(status_lines(running(), log_of(trials, disturbed=["c1"]), address=ADDRESS))
    assert "best:     so far c1 · TTFT 10.0 ms · 100 tok/s · measured while other programs disturbed it" in lines
    told = status_lines(running(), log_of(trials, disturbed=["c0", "c1"]), address=ADDRESS)
    gain = next(one for one in told if one.startswith("gain:"))
    assert gain.endswith(", which was measured while other programs disturbed it")


def test_the_status_says_when_the_sweep_told_it() -> None:
    log = log_of([measured("c0", "ok", 20.0)])
    at = dt.datetime(2026, 1, 1, 12, 34, 56).astimezone()
    log.feed(f"{MARK}{json.dumps({'at': at.timestamp(), 'lines': 0})}\n")
    (line,) = [one for one in status_lines(running(), log, address=ADDRESS) if one.startswith("time:")]
    assert line.endswith(" · as of 12:34:56")


def test_an_ended_sweep_shows_the_verdict_of_its_report() -> None:
    log = log_of([measured("c0", "ok", 20.0), measured("c1", "ok", 10.0)])
    verdict = "Uncertain, 9 of 9 runs disturbed: c1 is best here for chat."
    log.feed(f"{MARK}{json.dumps({'verdicts': [verdict], 'at': 1767225600.0, 'lines': 0})}\n")
    lines = list(status_lines(running(), log, address=ADDRESS))
    assert f"result:   {verdict}" in lines
    assert not any(line.startswith(("best:", "gain:")) for line in lines), "they count otherwise than the report"


@pytest.mark.parametrize("job", [running(COMMAND), failed(COMMAND[:420], exit_code=-9)])
def test_the_status_fits_one_screen_however_much_there_is_to_tell(job: Job) -> None:
    label = "static/sdpa_cudnn/bfloat16/compile=max-autotune/batch=16/prefill=4096"
    trials = [measured(f"{label}/{number}", "running" if number > 20 else "ok", 10.0 + number) for number in range(90)]
    lines = list(status_lines(job, log_of(trials), address=ADDRESS))
    assert sum(math.ceil(len(line) / 80) for line in lines) <= 24, "\n".join(lines)


def test_the_running_candidates_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = status_lines(running(), log_of([measured(f"c{number}", "running") for number in range(6)]), address=ADDRESS)
    assert "now:      c0, c1, c2, c3 and 2 more" in list(lines)


def test_the_list_as_json_is_a_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Server:
        address = ADDRESS

        def jobs(self) -> list[Job]:
            return [running(), failed("batch m.yaml", exit_code=4)]

    monkeypatch.setattr(jobs, "_server", lambda address: Server())
    jobs.list_(as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [(one["state"], one["command"], one["exit_code"]) for one in found] == [
        ("running", "tune m", None),
        ("failed", "batch m.yaml", 4),
    ]


def test_a_batch_whose_sweeps_were_disturbed_says_so() -> None:
    log = JobLog()
    told = {"batch_id": "b1", "statuses": {"ok": 2}, "now": "", "disturbed": 1}
    log.feed(f"{MARK}{json.dumps({'batch': told, 'lines': 0})}\n")
    lines = list(status_lines(running("batch m.yaml"), log, address=ADDRESS))
    assert lines[3:5] == ["sweeps:   2 ok", "doubt:    1 sweep disturbed too much to be trusted"]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (JobState.STOPPED, "Job raysubmit_1: stopped.\n"),
        (JobState.RUNNING, "Job raysubmit_1 is still ending. kvray jobs status raysubmit_1 shows when it has.\n"),
    ],
)
def test_a_job_that_takes_long_to_end_is_not_said_to_run_on(
    state: JobState, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Server:
        def job(self, _: str) -> Job:
            return running()

        def stop(self, _: str) -> bool:
            return True

        def wait(self, _: str, *, within_s: float) -> Job:
            return dataclasses.replace(running(), state=state)

    monkeypatch.setattr(jobs, "_server", lambda address: Server())
    jobs.stop("raysubmit_1")
    assert capsys.readouterr().out == said
