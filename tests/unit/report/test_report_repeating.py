"""How to measure again is worded by the command that the user typed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvray.cli import batch as batch_command
from kvray.errors import SweepError
from kvray.jobs.doorman import JOB
from kvray.report.disturbances import Disturbances
from kvray.report.repeating import BATCH, going_on_with, repeat_sentence_with
from kvray.tuning.batch import BatchSearch


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ((), "repeat the kvray tune command with --resume r1"),
        ((JOB,), "repeat the kvray submit tune command with --resume r1"),
        ((BATCH,), "run kvray tune with the model and settings of this sweep, the same --output, and --resume r1"),
        (
            (JOB, BATCH),
            "run kvray submit tune with the model and settings of this sweep, the same --output, and --resume r1",
        ),
    ],
)
def test_the_command_is_the_one_that_was_typed(
    variables: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (JOB, BATCH):
        monkeypatch.delenv(name, raising=False)
    for name in variables:
        monkeypatch.setenv(name, "1")
    told = Disturbances(runs=4, disturbed=2, reason=None, share=1.0, candidates=1).advice("r1")
    assert told == f"To measure again when the machine is quiet, {said} --retry disturbed --wait-quiet."
    assert repeat_sentence_with("--resume r1").lower() == said


def test_a_sweep_on_a_cluster_is_not_told_to_watch_this_machine() -> None:
    told = Disturbances(runs=4, disturbed=2, reason=None, share=1.0, candidates=1, on_cluster=True).advice("r1")
    assert told.endswith("--resume r1 --retry disturbed.")


@pytest.mark.parametrize("job", ["", "1"])
def test_a_sweep_of_a_batch_goes_on_by_the_batch(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB, job)
    monkeypatch.setenv(BATCH, "batch-7")
    command = "kvray submit batch" if job else "kvray batch"
    assert going_on_with("r1") == f"run {command} --resume batch-7 with the same --output"
    told = Disturbances(runs=4, disturbed=2, reason=None, share=1.0, candidates=1).advice("r1")
    assert told == (
        f"To measure again when the machine is quiet, run {command} --resume batch-7 --retry disturbed with the same "
        "--output."
    )


def test_while_a_batch_runs_its_reports_are_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def run(self: object) -> None:
        seen.append(os.environ.get(BATCH))
        raise SweepError("enough")

    monkeypatch.setattr(BatchSearch, "run", run)
    (tmp_path / "m.yaml").write_text("models: [org/name]", encoding="utf-8")
    with pytest.raises(SweepError, match="enough"):
        batch_command.batch(str(tmp_path / "m.yaml"), output=str(tmp_path / "out"))
    assert (seen, os.environ.get(BATCH)) == (["1"], None)
