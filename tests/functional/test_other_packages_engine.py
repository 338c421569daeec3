"""An engine of another package: found by its entry point, and held to the contract with the kit that kvray ships."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest
from kvray.testing.engine_contract import EngineContract

class TestMinimalEngine(EngineContract):
    engine = "minimal"
    missing_model = "large"

    @pytest.fixture
    def model_id(self):
        return "small"
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with the installed engine and its tests."""
    shutil.copy(Path(__file__).with_name("minimal_engine.py"), tmp_path)
    metadata = tmp_path / "minimal_engine-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: minimal-engine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[kvray.engines]\nminimal = minimal_engine:MinimalAdapter\n")
    (tmp_path / "test_minimal_engine.py").write_text(TESTS)
    return tmp_path


def outcome(package: Path) -> tuple[dict[str, int], str]:
    """How many of the kit's tests ended in which way, and all that pytest printed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--basetemp", package / "tmp"],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=package,
        env={**os.environ, "PYTHONPATH": str(package), "PY_COLORS": "0"},
    )
    counts = re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout.splitlines()[-1])
    return {word: int(number) for number, word in counts}, done.stdout + done.stderr


def test_the_least_that_an_engine_can_bring_passes_and_the_rest_is_skipped(package: Path) -> None:
    counts, printed = outcome(package)
    assert set(counts) == {"passed", "skipped"}, printed
    assert counts["passed"] > 15
    assert "no quality: this engine writes no text to measure quality on" in printed
    assert "the engine tells no quality" in printed
    assert "the engine has no code that could be run apart" in printed


def test_an_engine_that_generates_too_little_is_caught_in_this_process_and_in_one_of_its_own(package: Path) -> None:
    module = package / "minimal_engine.py"
    module.write_text(module.read_text().replace("TOKENS_SHORT = 0", "TOKENS_SHORT = 1"))
    counts, printed = outcome(package)
    assert counts["failed"] >= 3, printed
    for test in (
        "test_a_generation_has_exactly_the_asked_for_tokens_each_with_a_stamp",
        "test_a_trial_in_a_process_of_its_own_measures_every_rung",
    ):
        assert re.search(rf"^_+ TestMinimalEngine\.{test} _+$", printed, re.MULTILINE), printed
