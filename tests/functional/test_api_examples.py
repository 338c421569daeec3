"""The examples of the Python API, run as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from busy_machine import other_lines

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api") / "results"


@pytest.fixture(scope="module")
def tuned(results: Path, demo_model: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "tune_api.py"), str(demo_model), str(results)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


@pytest.mark.slow  # tunes the demo model
def test_the_api_example_prints_a_ranking_and_a_program(tuned: subprocess.CompletedProcess[str]) -> None:
    first = tuned.stdout.splitlines()[0]
    assert first.startswith(" 1  ")
    assert "tok/s" in first
    program = tuned.stdout[tuned.stdout.index("#") :]
    compile(program, "snippet", "exec")


@pytest.mark.slow  # tunes the demo model
def test_the_api_says_nothing_on_its_own(tuned: subprocess.CompletedProcess[str]) -> None:
    assert other_lines(tuned.stderr) == []


@pytest.mark.slow  # tunes the demo model
def test_the_plan_example_answers_sensibly(
    tuned: subprocess.CompletedProcess[str], results: Path, environment: dict[str, str]
) -> None:
    (plan,) = results.glob("reports/*/best_plan.json")
    command = [sys.executable, str(EXAMPLES / "use_plan.py"), str(plan), "The capital of France is"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "Paris" in done.stdout
    assert "answered by " in done.stderr


def test_the_example_of_a_space_is_what_it_says(
    kvray: Callable[..., subprocess.CompletedProcess[str]], tiny_model: str
) -> None:
    done = kvray(
        "tune",
        tiny_model,
        "--context",
        "400",
        "--output-len",
        "16",
        "--space",
        EXAMPLES / "space.yaml",
        "--dry-run",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    labels = [candidate["label"] for candidate in json.loads(done.stdout)["candidates"]]
    assert len(labels) == 11
    assert "sliding_window(sinks=4,window=256)/sdpa/bfloat16" in labels
    assert "dynamic/sdpa/bfloat16+chunk:128" in labels
