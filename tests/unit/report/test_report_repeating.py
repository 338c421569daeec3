"""How to measure again is worded by the command that measured."""

from __future__ import annotations

from typing import Any

import pytest
from manifests import RUN_ID, plain_manifest
from report_sweeps import BASELINE, measured

from kvray.record import TrialResult
from kvray.report.attempts import lost_runs_text
from kvray.report.disturbances import Disturbances
from kvray.report.facts import environment_facts
from kvray.report.repeating import going_on_with, repeat_with
from kvray.store.manifest import SweepManifest

DISTURBED = Disturbances(runs=4, disturbed=2, reason=None, share=1.0, candidates=1)
BATCH_ID = "batch-20260101-120000"
OF_ONE = "with the model and settings of this sweep, the same --output, and"


def measured_by(command: str, **more: Any) -> SweepManifest:
    return plain_manifest().model_copy(update={"command": command, **more})


@pytest.mark.parametrize(
    ("command", "goes_on", "repeats"),
    [
        ("kvray tune", "repeat the kvray tune command with --resume {id}", "repeat the kvray tune command with X"),
        (
            "kvray submit --upload-model tune",
            "repeat the kvray submit --upload-model tune command with --resume {id}",
            "repeat the kvray submit --upload-model tune command with X",
        ),
        (
            "kvray batch",
            f"run kvray batch --resume {BATCH_ID} with the same --output",
            f"run kvray tune {OF_ONE} X",
        ),
        (
            "kvray submit batch",
            f"repeat the kvray submit batch command with --resume {BATCH_ID}",
            f"run kvray submit tune {OF_ONE} X",
        ),
    ],
)
def test_the_command_is_the_one_that_measured(command: str, goes_on: str, repeats: str) -> None:
    manifest = measured_by(command)
    assert going_on_with(manifest) == goes_on.format(id=RUN_ID)
    assert repeat_with(manifest, "X") == repeats


def test_what_was_disturbed_is_measured_again_by_the_batch_or_the_sweep() -> None:
    assert DISTURBED.advice(measured_by("kvray tune")) == (
        "To measure again when the machine is quiet, repeat the kvray tune command with "
        f"--resume {RUN_ID} --retry disturbed --wait-quiet."
    )
    assert DISTURBED.advice(measured_by("kvray batch")) == (
        f"To measure again when the machine is quiet, run kvray batch --resume {BATCH_ID} --retry disturbed with the "
        "same --output."
    )


def test_a_sweep_on_a_cluster_is_not_told_to_watch_this_machine() -> None:
    on_cluster = Disturbances(runs=4, disturbed=2, reason=None, share=1.0, candidates=1, on_cluster=True)
    assert on_cluster.advice(measured_by("kvray submit tune")).endswith(f"--resume {RUN_ID} --retry disturbed.")


def test_a_report_does_not_repeat_a_sweep_of_a_batch_by_a_command_without_a_model() -> None:
    (told,) = (one.text for one in environment_facts(measured_by("kvray batch"), ()) if one.name == "Repeat it with")
    assert told == f"kvray batch, with the file of {BATCH_ID}"


def test_of_a_fetched_sweep_no_command_names_the_folder_that_it_was_fetched_into() -> None:
    lost = TrialResult(record=measured(BASELINE).record)
    asked = {"arguments": ("m", "--output", "there")}
    here = lost_runs_text(measured_by("kvray tune", **asked), (lost,), "here")
    assert here.endswith(f" again with kvray tune m --output here --resume {RUN_ID}")
    fetched = lost_runs_text(measured_by("kvray submit tune", **asked), (lost,), "here")
    assert fetched.endswith(f"Repeat the kvray submit tune command with --resume {RUN_ID} to measure it again.")
