"""How the time of a batch is divided among its sweeps."""

from __future__ import annotations

from queue_samples import Clock, Deaf, answer, make_queue

from kvray.record import TrialResult
from kvray.sweep.outlook import Outlook
from kvray.sweep.trial_task import TrialTask
from kvray.trial.spec import TrialSpec
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


class Hearing(Deaf):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def trial_started(self, spec: TrialSpec) -> None:
        self.heard.append("started")

    def rung_finished(self, result: TrialResult) -> None:
        self.heard.append("rung")

    def trial_lost(self, spec: TrialSpec) -> None:
        self.heard.append("lost")

    def trial_finished(self, result: TrialResult) -> None:
        self.heard.append("finished")

    def outlook_changed(self, outlook: Outlook) -> None:
        self.heard.append("outlook")


def test_a_sweep_is_charged_until_its_trial_ends_however_long_that_takes_to_be_written() -> None:
    clock, hearing = Clock(), Hearing()
    budget = BatchBudget(["a"], None, clock=clock)
    task = task_of("a")
    observer = budget.charged(hearing)
    observer.outlook_changed(Outlook())
    observer.trial_started(task.spec)
    clock.now = 5
    observer.trial_lost(task.spec)
    observer.trial_started(task.spec)
    observer.rung_finished(answer(task))
    clock.now = 10
    observer.trial_finished(answer(task))
    clock.now = 50
    assert budget.left_s("a", 60) == 50
    assert hearing.heard == ["outlook", "started", "lost", "started", "rung", "finished"]
