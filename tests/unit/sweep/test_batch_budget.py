"""How the time of a batch is divided among its sweeps."""

from __future__ import annotations

from queue_samples import Clock, answer, make_queue

from kvray.sweep.trial_task import TrialTask
from kvray.tuning.batch_budget import BatchBudget


def task_of(run_id: str) -> TrialTask:
    task = make_queue(run_id=run_id).next_trial()
    assert task is not None
    return task


def test_a_sweep_has_an_equal_share_of_what_is_left_and_no_more_than_its_own_bound() -> None:
    clock = Clock()
    budget = BatchBudget(["a", "b", "c", "d"], 3600, clock=clock)
    assert budget.left_s("a") == 900
    assert budget.left_s("a", 60) == 60
    assert BatchBudget(["a"], None).left_s("a") is None
    assert BatchBudget(["a"], None).left_s("a", 60) == 60


def test_what_one_does_not_need_goes_to_the_others_and_the_end_is_the_same_for_all() -> None:
    clock = Clock()
    budget = BatchBudget(["a", "b", "c", "d"], 3600, clock=clock)
    clock.now = 100
    budget.ended("a")
    assert budget.left_s("b") == 3500 / 3
    clock.now = 3599
    assert budget.left_s("b") == 1 / 3
    assert not budget.is_spent
    clock.now = 3600
    assert budget.is_spent


def test_only_the_time_in_which_its_trials_hold_slots_is_a_sweeps_own() -> None:
    clock = Clock()
    budget = BatchBudget(["a", "b"], 1000, clock=clock)
    budget.slots = 2
    task = task_of("a")
    budget.trial_started(task.spec)
    clock.now = 100  # one of two slots: 50 s of the batch's 1000
    assert (budget.left_s("a"), budget.left_s("b")) == (425, 475)
    budget.trial_finished(answer(task))
    clock.now = 200
    assert budget.left_s("a", 60) == 10
    assert (budget.left_s("a"), budget.left_s("b")) == (375, 425)


def test_a_lost_trial_counts_with_the_time_that_it_had() -> None:
    clock = Clock()
    budget = BatchBudget(["a"], None, clock=clock)
    task = task_of("a")
    budget.trial_started(task.spec)
    clock.now = 5
    budget.trial_lost(task.spec)
    clock.now = 50
    assert budget.left_s("a", 60) == 55
