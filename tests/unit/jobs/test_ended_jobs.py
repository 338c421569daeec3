"""What is said of a job that did not end by itself."""

from __future__ import annotations

import dataclasses
from typing import cast

import pytest

from kvray.cli.following import end_of, how_to_go_on, why_it_failed
from kvray.cli.job_events import BatchState, JobLog
from kvray.cli.jobs import results_of, still_runs
from kvray.errors import ResultsError
from kvray.jobs.client import Job, JobServer, JobState


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
    assert why_it_failed(failed("tune m", exit_code=exit_code, message=message), JobLog()) == f"{said}."


@pytest.mark.parametrize("exit_code", [1, 3, 4, 11, 13, 70])
def test_of_an_exit_code_of_its_own_the_reason_in_the_log_is_told(exit_code: int) -> None:
    log = JobLog(output="/r", run_id="r1")
    log.feed("kvray: warning: busy\nkvray: Model 'm' was not found. Check its name.\nkvray: warning: again\nbye\n")
    job = failed("tune m", exit_code=exit_code)
    assert why_it_failed(job, log) == f"exit code {exit_code}: Model 'm' was not found. Check its name."
    assert how_to_go_on("http://head:8265", job, log) is None, "the reason says what to do"


def test_of_an_exit_code_of_its_own_without_a_word_that_is_said() -> None:
    assert why_it_failed(failed("tune m", exit_code=3), JobLog()) == "exit code 3: its log tells no reason."


@pytest.mark.parametrize(
    ("state", "log", "said"),
    [
        (JobState.PENDING, JobLog(), "has no results yet: it has not begun to measure."),
        (JobState.RUNNING, JobLog(output="/r"), "has no results yet: it has not begun to measure."),
        (JobState.SUCCEEDED, JobLog(output="/r"), "has no results: it ended before it measured anything."),
        (JobState.STOPPED, JobLog(output="/r"), "has no results: it ended before it measured anything."),
        (
            JobState.FAILED,
            JobLog(output="/r", last_word="No model 'm'."),
            "has no results. It failed: exit code 4: No mod",
        ),
        (JobState.RUNNING, JobLog(output="s3://b/r", run_id="r1"), "which needs no fetching"),
    ],
)
def test_without_results_of_its_own_nothing_is_fetched(state: JobState, log: JobLog, said: str) -> None:
    job = dataclasses.replace(failed("tune m", exit_code=4), state=state)
    with pytest.raises(ResultsError) as raised:
        results_of(job, log)
    assert said in str(raised.value)
    assert raised.value.exit_code != 0


@pytest.mark.parametrize(
    ("log", "where"),
    [
        (JobLog(output="s3://b/r", run_id="r1"), "kvray rank s3://b/r --run r1."),
        (
            JobLog(output="s3://b/r", batch=BatchState(batch_id="b1", statuses={}, now="")),
            "s3://b/r/batches/b1/overview",
        ),
    ],
)
def test_results_that_lie_in_a_bucket_are_named_instead_of_fetched(log: JobLog, where: str) -> None:
    with pytest.raises(ResultsError, match="are in s3://b/r, which needs no fetching") as raised:
        results_of(failed("tune m", exit_code=0), log)
    assert where in str(raised.value)


def test_the_results_of_a_sweep_or_batch_are_its_own() -> None:
    job = failed("tune m", exit_code=-9)
    assert results_of(job, JobLog(output="/r", run_id="r1")) == ("/r", "r1")
    assert results_of(job, JobLog(output="/r", batch=BatchState(batch_id="b1", statuses={}, now=""))) == ("/r", "b1")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["sweeps/a.json"], "still runs, and the records, the plan and the report are not there yet. Repeat"),
        (["trials/run_id=a/x.parquet", "runs/best_plan.json"], "still runs, and the report is not there yet. Repeat"),
        (["x.parquet", "best_plan.json", "report.html"], "still runs. Repeat the command when it has ended."),
    ],
)
def test_of_a_job_that_still_runs_it_is_said_what_is_missing(names: list[str], said: str) -> None:
    assert said in still_runs(failed("tune m", exit_code=None), names)


@pytest.mark.parametrize(
    ("command", "log", "typed"),
    [
        ("tune 'a b' --repeats 3", JobLog(output="/r", run_id="r1"), "tune 'a b' --repeats 3 --resume r1"),
        ("tune m --resume r1", JobLog(output="/r", run_id="r1"), "tune m --resume r1"),
        ("tune m --resume=r1", JobLog(output="/r", run_id="r1"), "tune m --resume r1"),
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


def test_the_command_for_the_rest_has_the_options_of_submit_that_the_job_needs() -> None:
    job = dataclasses.replace(failed("tune ./tiny", exit_code=-9), options="--upload-model --pip --extras all")
    told = how_to_go_on("http://head:8265", job, JobLog(output="/r", run_id="r1"))
    assert told is not None
    assert told.endswith("http://head:8265 --upload-model --pip --extras all tune ./tiny --resume r1")


def test_of_a_job_that_measured_nothing_there_is_no_rest() -> None:
    assert how_to_go_on("http://head:8265", failed("tune m", exit_code=-9), JobLog()) is None


class Server:
    """A job server that knows one job."""

    address = "http://head:8265"

    def __init__(self, job: Job) -> None:
        self._job = job

    def job(self, job_id: str) -> Job:
        return self._job


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("/r", "kvray: results: /r on the cluster; kvray jobs fetch --address http://head:8265 raysubmit_1\n"),
        ("s3://b/r", "kvray: results: s3://b/r\n"),
    ],
)
def test_results_are_fetched_from_the_clusters_folders_alone(
    output: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = dataclasses.replace(failed("tune m", exit_code=0), state=JobState.SUCCEEDED)
    end_of(cast(JobServer, Server(job)), job.job_id, JobLog(output=output, run_id="r1"))
    assert capsys.readouterr().err == said


def test_what_lies_in_a_bucket_is_not_said_to_be_on_the_cluster() -> None:
    told = how_to_go_on("http://head:8265", failed("tune m", exit_code=-9), JobLog(output="s3://b/r", run_id="r1"))
    assert told is not None
    assert told.startswith("Its records are kept in s3://b/r. Measure the rest with: ")
