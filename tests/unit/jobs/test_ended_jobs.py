"""What is said of a job that did not end by itself."""

from __future__ import annotations

import pytest

from kvray.cli.following import how_it_failed, how_to_go_on
from kvray.cli.job_events import BatchState, JobLog
from kvray.jobs.client import Job, JobState


def failed(command: str, *, exit_code: int | None, message: str = "") -> Job:
    return Job(
        job_id="raysubmit_1",
        state=JobState.FAILED,
        command=command,
        started=None,
        ended=None,
        exit_code=exit_code,
        message=message,
        node=None,
    )


@pytest.mark.parametrize(
    ("exit_code", "message", "said"),
    [
        (-9, "", "its driver was killed (signal 9)"),
        (137, "", "its driver was killed (signal 9)"),
        (127, "", "its python was not found"),
        (None, "Failed to set up\n  the runtime environment.", "Failed to set up the runtime environment"),
        (None, "", "Ray says no reason"),
    ],
)
def test_what_ended_it_is_told(exit_code: int | None, message: str, said: str) -> None:
    assert how_it_failed(failed("tune m", exit_code=exit_code, message=message)) == f"Job raysubmit_1 failed: {said}."


@pytest.mark.parametrize(
    ("command", "log", "typed"),
    [
        ("tune 'a b' --repeats 3", JobLog(output="/r", run_id="r1"), "tune 'a b' --repeats 3 --resume r1"),
        ("tune m --resume r1", JobLog(output="/r", run_id="r1"), "tune m --resume r1"),
        (
            "batch m.yaml",
            JobLog(output="/r", batch=BatchState(batch_id="b1", statuses={}, now="")),
            "batch m.yaml --resume b1",
        ),
    ],
)
def test_the_command_that_measures_the_rest_is_told(command: str, log: JobLog, typed: str) -> None:
    told = how_to_go_on("http://head:8265", failed(command, exit_code=-9), log)
    assert told == (
        "Its records are kept in /r on the cluster. "
        f"Measure the rest with: kvray submit --address http://head:8265 {typed}"
    )


def test_of_a_job_that_measured_nothing_there_is_no_rest() -> None:
    assert how_to_go_on("http://head:8265", failed("tune m", exit_code=-9), JobLog()) is None
