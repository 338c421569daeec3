"""The benchmarks of comparisons: made-up checks come to the verdict that is true, and variances to their parts."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gate")


@pytest.mark.parametrize(
    ("name", "verdict"), [("none_2", "pass"), ("worse15_2", "fail"), ("cell_2", "fail"), ("none_4", "pass")]
)
def test_a_simulated_gate_comes_to_the_true_verdict(name: str, verdict: str, gate: ModuleType) -> None:
    row = next(row for row in gate.rows() if row.name == name)
    figures = gate.row_figures(row, 20, np.random.default_rng(1))
    assert figures[f"{name}_{verdict}"] >= 0.8
    other = {"pass": "fail", "fail": "pass"}[verdict]
    assert figures[f"{name}_{other}"] <= 0.05
    assert figures[f"{name}_rounds"] <= 12


def test_a_simulated_suite_says_little_by_chance_and_finds_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    chance = importlib.import_module("suite_chance")
    alone, among = chance.unchanged(4, 1, 4), chance.unchanged(4, chance.CASES, 4)
    assert alone["none_4_1_better"] > among["none_4_27_better"] == 0
    assert chance.one_changed(4, chance.CASES, 50, 10)["one_4_27_50"] >= 0.9
    assert chance.one_changed(4, chance.CASES, -40, 10)["one_4_27_-40"] >= 0.9


def test_the_spread_between_sessions_is_told_from_that_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sessions = importlib.import_module("sessions")
    generator, lines = np.random.default_rng(0), []
    for session in range(60):
        offset = generator.normal(0, 0.04)
        for process in range(3):
            own = offset + generator.normal(0, 0.02)
            for repeat in range(3):
                logs = (own + generator.normal(0, 0.01), 0.0, 0.0)
                lines.append(
                    sessions.Line(
                        session=str(session),
                        candidate="llama_cpp",
                        process=process,
                        repeat=repeat,
                        logs=logs,
                        disturbed=False,
                    )
                )
    found = sessions.components(lines, 0)
    assert found.session == pytest.approx(0.04, rel=0.25)
    assert found.process == pytest.approx(0.02, rel=0.15)
    assert found.run == pytest.approx(0.01, rel=0.15)
    assert found.session_low < 0.04 < found.session_high
