"""A confirming round is one task of one slot, so that its trials run on the same device. The test is the slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
from queue_samples import SPACE, Deaf, answer, make_queue

from kvray.candidate import DeviceType
from kvray.record import Role, TrialResult, TrialStatus
from kvray.sweep.admission import Admission
from kvray.sweep.batch import QueuedSweep, SweepBatch
from kvray.sweep.capacity import Room
from kvray.sweep.lanes import Lane, Lanes
from kvray.sweep.outlook import Outlook
from kvray.sweep.progress import ObserverCallback
from kvray.sweep.searcher import BatchSearcher
from kvray.sweep.slot import GOES_ON, RESULT, TASK
from kvray.sweep.trial_queue import SweepQueue
from kvray.sweep.trial_task import MOST_ATTEMPTS, TrialTask
from kvray.trial.spec import TrialSpec


class Hearing(Deaf):
    """An observer that writes down what it hears of confirming trials."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def trial_started(self, spec: TrialSpec) -> None:
        if spec.role is Role.CONFIRM:
            self.heard.append(f"start {spec.trial_id}")

    def trial_lost(self, spec: TrialSpec) -> None:
        self.heard.append(f"lost {spec.trial_id}")

    def trial_finished(self, result: TrialResult) -> None:
        if result.record.role is Role.CONFIRM:
            self.heard.append(f"{result.record.status} {result.record.trial_id}")

    def outlook_changed(self, outlook: Outlook) -> None:
        if outlook.confirming:
            self.heard.append(f"{outlook.confirming} of {outlook.confirming_most}")


class Sweep:
    """A sweep on two slots whose search is over; the methods are what Tune would call, in its order."""

    def __init__(self, *, recorded: Sequence[TrialResult] = (), observer: Hearing | None = None) -> None:
        self.observer, self.waits = observer or Hearing(), 0
        self.queue: SweepQueue = make_queue(confirm_rounds=1, recorded=recorded)
        batch = SweepBatch([QueuedSweep(queue=self.queue, observer=self.observer)])
        admission = Admission(batch, room=lambda: Room(slots=2))
        lanes = Lanes({None: Lane(batch=batch, admission=admission)})
        self.searcher = BatchSearcher(lanes, before_launch=self._wait)
        self.callback = ObserverCallback(lanes, check_alive=lambda: None)
        self.searched: list[TrialTask] = []
        for number in range(0 if recorded else len(SPACE)):
            self.end(self.begin(f"search-{number}"), answer(self.task))
            self.searched.append(self.task)
        self.waits = 0

    def _wait(self) -> None:
        self.waits += 1

    def begin(self, name: str) -> SimpleNamespace:
        config = self.searcher.suggest(name)
        assert isinstance(config, dict), "nothing to launch"
        self.task: TrialTask = config[TASK]
        trial = SimpleNamespace(trial_id=name, config=config, run_metadata=SimpleNamespace())
        self.callback.on_trial_start(0, [], trial)
        return trial

    def go_on(self, trial: SimpleNamespace, result: TrialResult, *, following: TrialTask | None = None) -> None:
        following = following or self.task.following_on("the same")
        assert following is not None
        self.task = following
        told = {RESULT: result, GOES_ON: following.spec.trial_id, "done": False}
        self.searcher.on_trial_result(trial.trial_id, told)
        self.callback.on_trial_result(0, [], trial, told)

    def end(self, trial: SimpleNamespace, result: TrialResult) -> None:
        told = {RESULT: result, "done": True}
        self.callback.on_trial_result(0, [], trial, told)
        self.searcher.on_trial_complete(trial.trial_id, told)
        self.callback.on_trial_complete(0, [], trial)

    def lose(self, trial: SimpleNamespace) -> None:
        self.searcher.on_trial_complete(trial.trial_id, error=True)
        self.callback.on_trial_error(0, [], trial)


def members(task: TrialTask) -> list[TrialTask]:
    return [replace(one, then=()) for one in (task, *task.then)]


def ids(task: TrialTask) -> list[str]:
    return [one.spec.trial_id for one in members(task)]


def test_a_round_is_one_task_and_another_free_slot_waits_for_its_end() -> None:
    sweep = Sweep()
    sweep.begin("round")
    assert len(sweep.task.then) >= 1
    assert {one.spec.confirm_round for one in members(sweep.task)} == {1}
    assert len(set(ids(sweep.task))) == len(ids(sweep.task))
    assert sweep.searcher.suggest("other") is None


def test_every_trial_of_a_round_is_told_of_when_it_begins_and_when_it_ends() -> None:
    sweep = Sweep()
    trial = sweep.begin("round")
    tasks = members(sweep.task)
    count = len(tasks)
    for one in tasks[:-1]:
        sweep.go_on(trial, answer(one))
    sweep.end(trial, answer(tasks[-1]))
    said = [line for line in sweep.observer.heard if " of " not in line]
    assert said == [f"{what} {one.spec.trial_id}" for one in tasks for what in ("start", "ok")]
    begun = [sweep.observer.heard[place - 1] for place, line in enumerate(sweep.observer.heard) if "start" in line]
    assert begun == [f"{number} of {count}" for number in range(1, count + 1)]
    assert sweep.observer.heard[:4] == [begun[0], said[0], said[1], begun[1]], "the first ends as number 1"
    assert sweep.waits == count, "before each of them nothing else ran"
    assert sweep.searcher.suggest("more") == "FINISHED"


def test_what_is_left_of_a_round_whose_slot_died_is_one_task_again() -> None:
    sweep = Sweep()
    trial = sweep.begin("round")
    first, second, *rest = members(sweep.task)
    sweep.go_on(trial, answer(first))
    sweep.lose(trial)
    assert sweep.observer.heard[-1] == f"lost {second.spec.trial_id}"
    sweep.begin("again")
    assert members(sweep.task) == [replace(second, attempt=2), *rest]


def test_a_round_goes_on_without_the_trial_under_which_every_slot_died() -> None:
    sweep = Sweep()
    trial = sweep.begin("round")
    first, *rest = members(sweep.task)
    for attempt in range(2, MOST_ATTEMPTS + 1):
        sweep.lose(trial)
        trial = sweep.begin(f"attempt-{attempt}")
    sweep.lose(trial)
    assert f"crashed {first.spec.trial_id}" in sweep.observer.heard
    trial = sweep.begin("rest")
    assert members(sweep.task) == rest
    for one in rest[:-1]:
        sweep.go_on(trial, answer(one))
    sweep.end(trial, answer(rest[-1]))
    assert sweep.searcher.suggest("more") == "FINISHED"


def test_a_trial_that_fails_does_not_end_its_round() -> None:
    sweep = Sweep()
    trial = sweep.begin("round")
    first, *rest = members(sweep.task)
    sweep.go_on(trial, answer(first, status=TrialStatus.OOM))
    assert f"oom {first.spec.trial_id}" in sweep.observer.heard
    assert sweep.observer.heard[-1] == f"start {rest[0].spec.trial_id}"


def test_a_sweep_that_is_broken_off_in_a_round_keeps_what_has_ended_and_begins_nothing() -> None:
    sweep = Sweep()
    trial = sweep.begin("round")
    first, second, *_ = members(sweep.task)
    sweep.go_on(trial, answer(first))
    sweep.callback.break_off()
    said = [line for line in sweep.observer.heard if " of " not in line]
    assert said == [
        f"start {first.spec.trial_id}",
        f"ok {first.spec.trial_id}",
        f"start {second.spec.trial_id}",
        f"interrupted {second.spec.trial_id}",
    ]


class Interrupted(Hearing):
    """Is told something when Ctrl-C comes, once `comes` is set."""

    comes = False

    def outlook_changed(self, outlook: Outlook) -> None:
        self._press()

    def trial_finished(self, result: TrialResult) -> None:
        self._press()
        super().trial_finished(result)

    def _press(self) -> None:
        if self.comes:
            self.comes = False
            raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["end", "go_on"])
def test_a_trial_that_ended_is_told_of_although_ctrl_c_comes_first(how: str) -> None:
    observer = Interrupted()
    sweep = Sweep(observer=observer)
    trial = sweep.begin("round")
    first = members(sweep.task)[0]
    observer.comes = True
    with pytest.raises(KeyboardInterrupt):
        getattr(sweep, how)(trial, answer(first))
    sweep.callback.break_off()
    assert f"ok {first.spec.trial_id}" in observer.heard


def test_the_slot_of_a_round_holds_the_gpus_of_its_largest_candidate() -> None:
    task = make_queue().next_trial()
    assert task is not None

    def on(gpus: int) -> TrialTask:
        candidate = replace(task.spec.candidate, parallelism=gpus)
        return replace(task, spec=replace(task.spec, candidate=candidate, device=DeviceType.CUDA))

    several = replace(on(1), then=(on(4), on(2)))
    assert several.gpus == several.largest.parallelism == 4
    assert several.following_on("GPU-1") == replace(on(4), then=(on(2),))
    assert on(2).following_on("GPU-1") is None


BROKEN_OFF_ON = "GPU-1"


def broken_off(kept: int, *, device: str | None = BROKEN_OFF_ON) -> tuple[Sweep, list[TrialTask]]:
    """A sweep that was resumed after `kept` trials of its first round, and the tasks of the whole round."""
    first = Sweep()
    first.begin("round")
    tasks = members(first.task)
    results = [answer(task) for task in (*first.searched, *tasks[:kept])]
    on_device = [TrialResult(record=one.record.with_(device_uuid=device), runs=one.runs) for one in results]
    return Sweep(recorded=on_device), tasks


def test_what_is_left_of_a_round_is_all_that_runs_where_it_was_begun() -> None:
    resumed, tasks = broken_off(1)
    trial = resumed.begin("rest")
    assert ids(resumed.task)[: len(tasks) - 1] == [one.spec.trial_id for one in tasks[1:]]
    for one in tasks[1:-1]:
        following = resumed.task.following_on(BROKEN_OFF_ON)
        assert following is not None
        resumed.go_on(trial, answer(one), following=following)
    assert resumed.task.following_on(f"{BROKEN_OFF_ON},GPU-2") is None, "among others"
    resumed.end(trial, answer(tasks[-1]))
    assert resumed.queue.outlook().confirming == len(tasks) - 1
    assert resumed.searcher.suggest("more") == "FINISHED"


def test_a_round_that_goes_on_on_another_device_runs_there_whole() -> None:
    resumed, tasks = broken_off(1)
    trial = resumed.begin("round")
    ran = members(resumed.task)
    assert [one.spec.candidate for one in ran] == [one.spec.candidate for one in (*tasks[1:], *tasks[:1])]
    assert ran[-1].spec.trial_id == f"{tasks[0].spec.trial_id}.2"
    for one in ran[:-1]:
        following = resumed.task.following_on("GPU-2")
        assert following is not None
        resumed.go_on(trial, answer(one), following=following)
    resumed.end(trial, answer(ran[-1]))
    assert resumed.searcher.suggest("more") == "FINISHED"


def test_a_round_of_which_nobody_knows_the_device_is_only_ended() -> None:
    resumed, tasks = broken_off(1, device=None)
    resumed.begin("rest")
    assert ids(resumed.task) == [one.spec.trial_id for one in tasks[1:]]
