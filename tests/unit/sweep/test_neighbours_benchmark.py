"""The order in which `benchmarks/neighbours.py` launches its trials, and what it computes of them."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from queue_samples import answer, make_queue

from kvray.record import Role
from kvray.sweep.trial_task import TrialTask

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def neighbours(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("neighbours")


def test_the_candidate_runs_alone_and_beside_others_in_turn(neighbours: Any) -> None:
    any_task = make_queue().next_trial()
    assert any_task is not None

    def make(trial_id: str, candidate: object, role: Role) -> TrialTask:
        return replace(any_task, spec=replace(any_task.spec, trial_id=trial_id, role=role))

    queue = neighbours.InTurn(make, neighbours=1, seconds=0.0)
    begun: list[list[str]] = []
    running: list[TrialTask] = []
    while True:
        while len(running) < 2 and (task := queue.next_trial()) is not None:
            running.append(task)
            begun.append([one.spec.trial_id.partition("-")[0] for one in running])
            assert len(begun) < 50, "it does not end"
        if not running:
            break
        # The first neighbour ends before the candidate, and another one takes its place.
        ends = running[0] if begun[-1] == BESIDE[1] else next((one for one in running if is_measured(one)), running[0])
        running.remove(ends)
        queue.trial_finished(answer(ends))
    assert queue.is_over
    assert begun == [["alone"], *BESIDE, *BESIDE, ["alone"]], "alone is alone, and the order alternates"
    assert queue.rounds == neighbours.FEWEST_ROUNDS


BESIDE = [["neighbour"], ["neighbour", "beside"], ["beside", "neighbour"]]


def is_measured(task: TrialTask) -> bool:
    return task.spec.role is Role.BASELINE


def test_an_effect_is_the_mean_ratio_with_its_interval(neighbours: Any) -> None:
    effect = neighbours.Effect.of([10.0, 10.0, 10.0], [11.0, 11.1, 11.0])
    assert 1.0 < effect.low < effect.ratio < effect.high
    assert effect.ratio == pytest.approx((1.1 * 1.11 * 1.1) ** (1 / 3))
    assert effect.alone == 1.0
