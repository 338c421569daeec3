"""What `kvray apply` takes for a plan, and what is said where a file stands in the place of a results folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kvray.cli.app import run
from kvray.errors import PlanError, ResultsError

RESULTS = Path(__file__).parents[2] / "assets" / "results_v3"
TINY, FAKE = "20261127-023230-e83e", "20261127-023553-8bef"
PLAN = RESULTS / "reports" / FAKE / "best_plan.json"
Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("place", "winner"),
    [
        (PLAN, "static/sdpa/bfloat16"),
        (PLAN.parent, "static/sdpa/bfloat16"),
        (RESULTS, "static/sdpa/bfloat16"),
        (f"{RESULTS}#{TINY}", "dynamic/sdpa/float32+chunk:32×2"),
        (f"file://{PLAN}", "static/sdpa/bfloat16"),
        (f"file://{PLAN.parent}", "static/sdpa/bfloat16"),
        (f"file://{RESULTS}/", "static/sdpa/bfloat16"),
        (f"file://{RESULTS}#{TINY}", "dynamic/sdpa/float32+chunk:32×2"),
    ],
    ids=["plan", "folder of a run", "folder", "run", "plan by URI", "run's folder by URI", "URI", "run by URI"],
)
def test_a_plan_is_found_in_a_results_folder(place: Path | str, winner: str, capsys: Captured) -> None:
    assert run(["apply", str(place)], verbose=False) == 0
    assert f"use      {winner}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "error", "told"),
    [
        ("{}#other", ResultsError, "holds no sweep 'other'. It holds: "),
        (f"{{}}#{FAKE}", PlanError, f"Sweep '{FAKE}' in '{{}}' has no plan, because it has no winner."),
        (f"file://{{}}#{FAKE}", PlanError, f"Sweep '{FAKE}' in 'file://{{}}' has no plan, because it has no winner."),
        ("file://{}/nowhere", ResultsError, "There is no results folder 'file://{}/nowhere'."),
        ("nowhere", PlanError, "Cannot read plan 'nowhere': No such file or directory."),
        ("#x", PlanError, "Cannot read plan '#x'"),
    ],
)
def test_a_place_without_a_plan_is_one_line(
    place: str, error: type[PlanError], told: str, tmp_path: Path, capsys: Captured
) -> None:
    folder = shutil.copytree(RESULTS, tmp_path / "results", copy_function=shutil.copyfile)
    (folder / "reports" / FAKE / "best_plan.json").unlink()
    assert run(["apply", place.format(folder)], verbose=False) == error.exit_code
    line = capsys.readouterr().err
    assert line.startswith("kvray: ")
    assert told.format(folder) in line


@pytest.mark.parametrize("command", [["rank", PLAN], ["report", PLAN], ["rank", PLAN, "--run", FAKE]])
def test_a_file_in_place_of_a_results_folder_is_named(command: list[str | Path], capsys: Captured) -> None:
    assert run([str(one) for one in command], verbose=False) == ResultsError.exit_code
    line = capsys.readouterr().err
    assert f"A results folder is needed, and '{PLAN}' is a file." in line
    assert "kvray apply shows a plan" in line
