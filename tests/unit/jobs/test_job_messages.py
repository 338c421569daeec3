"""What `kvray jobs` says where there is little to say, and when the connection is lost."""

from __future__ import annotations

import pytest
from test_ended_jobs import failed

from kvray.cli import jobs
from kvray.jobs.client import Job
from kvray.jobs.doorman import MARK
from kvray.jobs.troubles import lost_connection


class Quiet:
    """A cluster on which nothing runs."""

    address = "http://head:8265"

    def jobs(self) -> list[Job]:
        return []

    def job(self, job_id: str) -> Job:
        return failed("tune m", exit_code=4)

    def log(self, job_id: str) -> str:
        return f'{MARK}{{"output": "/home/x/kvray_results", "lines": 0}}\nkvray: No model.\n'


@pytest.fixture(autouse=True)
def _nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_server", lambda address: Quiet())


def test_no_jobs_are_said_beside_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    jobs.list_()
    assert capsys.readouterr() == ("", "kvray: no jobs yet\n")


def test_a_job_that_has_ended_is_not_stopped_again(capsys: pytest.CaptureFixture[str]) -> None:
    jobs.stop("raysubmit_1")
    assert capsys.readouterr().out == "Job raysubmit_1 had already ended: failed.\n"


def test_the_status_of_a_job_without_a_sweep_names_no_results(capsys: pytest.CaptureFixture[str]) -> None:
    jobs.status("raysubmit_1")
    said = capsys.readouterr().out
    assert "results:  none\nfailed:   exit code 4: No model.\n" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "Cannot connect to host h:1 ssl:default [Connect call failed ('10.0.0.1', 1)]",
            ": Connection refused.",
        ),
        ("WebSocket connection closed with code 1006", "."),
    ],
)
def test_a_lost_connection_is_told_in_plain_words_with_the_way_back(error: str, said: str) -> None:
    assert str(lost_connection("http://head:8265", "raysubmit_1", OSError(error))) == (
        f"The connection to http://head:8265 was lost{said} Job raysubmit_1 may go on. "
        "Follow it again with kvray jobs logs --follow --address http://head:8265 raysubmit_1."
    )
