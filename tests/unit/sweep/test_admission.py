"""Trials of one GPU and of several on the same machines, by a test that plays Ray."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from queue_samples import BASELINE, make_queue

from kvray.candidate import DeviceType
from kvray.record import TrialResult
from kvray.sweep.admission import Admission
from kvray.sweep.capacity import Room
from kvray.sweep.outlook import Outlook
from kvray.sweep.trial_queue import TrialQueue
from kvray.sweep.trial_task import TrialTask


def task_of(gpus: int, number: int = 0, *, device: DeviceType = DeviceType.CUDA) -> TrialTask:
    task = make_queue().next_trial()
    assert task is not None
    spec = replace(
        task.spec,
        trial_id=str(number),
        candidate=replace(BASELINE, parallelism=gpus),
        device=device,
    )
    return replace(task, spec=spec)


class InOrder(TrialQueue):
    """Trials of so many GPUs each, one after the other."""

    stops_early = False

    def __init__(self, gpus: Sequence[int], *, device: DeviceType = DeviceType.CUDA) -> None:
        self.left = [task_of(one, number, device=device) for number, one in enumerate(gpus)]
        self.running = 0

    @property
    def is_over(self) -> bool:
        return not self.left and not self.running

    def next_trial(self) -> TrialTask | None:
        if not self.left:
            return None
        self.running += 1
        return self.left.pop(0)

    def rung_finished(self, result: TrialResult) -> None:
        raise AssertionError("not asked here")

    def trial_finished(self, result: TrialResult) -> None:
        raise AssertionError("not asked here")

    def trial_lost(self, task: TrialTask) -> None:
        raise AssertionError("not asked here")

    def trial_spared(self, task: TrialTask) -> None:
        raise AssertionError("not asked here")

    def is_out_of_time(self) -> bool:
        return False

    def outlook(self) -> Outlook:
        return Outlook()

    def win_chance(self, candidate_id: str) -> float:
        return 1.0


@dataclass
class Machines:
    """What Ray would run, and what is let in."""

    admission: Admission
    queue: InOrder
    running: list[TrialTask]

    def start(self) -> list[int]:
        """Let in as many as there is room for; how many GPUs each of them holds."""
        started = []
        while (task := self.admission.next_trial()) is not None:
            self.running.append(task)
            started.append(task.gpus)
        return started

    def end(self, position: int = 0) -> list[int]:
        """One of those that run ends."""
        task = self.running.pop(position)
        self.queue.running -= 1
        self.admission.ended(task)
        return self.start()

    @property
    def held(self) -> int:
        return sum(task.gpus for task in self.running)


def machines(gpus: Sequence[int], room: Room) -> Machines:
    queue = InOrder(gpus)
    return Machines(Admission(queue, room=lambda: room), queue, [])


FOUR = Room(slots=4, gpus=4, largest=4)


def test_trials_start_while_there_are_gpus_for_them() -> None:
    four = machines([2, 1, 1, 1], FOUR)
    assert four.start() == [2, 1, 1]
    assert four.end() == [1]


def test_one_that_needs_all_gpus_waits_until_the_others_have_ended_and_nobody_overtakes_it() -> None:
    four = machines([1, 1, 4, 1, 1], FOUR)
    assert four.start() == [1, 1]
    assert four.end() == []
    assert four.end() == [4]
    assert four.end() == [1, 1]
    assert [four.end(), four.end()] == [[], []]
    assert four.admission.is_over


def test_gpus_that_one_who_waits_does_not_need_go_on_working() -> None:
    four = machines([3, 2, 1, 1, 1], FOUR)
    assert four.start() == [3, 1], "the last GPU is not gathered for the second trial"
    assert four.end() == [2, 1]


def test_those_who_overtake_never_hold_what_one_who_waits_needs() -> None:
    """Small trials keep coming and take their time; the large one starts when the first has ended."""
    four = machines([2, 3, *[1] * 20], Room(slots=8, gpus=4, largest=4))
    assert four.start() == [2, 1]
    for _ in range(5):
        assert four.end(1) == [1], "one GPU at a time is left to them"
    assert four.end(0) == [3]


def test_slots_asked_for_are_the_most_trials_whatever_they_hold() -> None:
    one = machines([1, 4, 1], Room(slots=1, gpus=4, largest=4))
    assert one.start() == [1]
    assert one.end() == [4]
    assert one.end() == [1]


def test_on_a_cpu_trials_are_counted() -> None:
    queue = InOrder([1, 1, 1], device=DeviceType.CPU)
    admission = Admission(queue, room=lambda: Room(slots=2))
    assert admission.next_trial() is not None
    assert admission.next_trial() is not None
    assert admission.next_trial() is None
    assert not admission.is_over


def test_the_largest_trial_that_must_run_is_known_while_it_waits() -> None:
    four = machines([1, 4], FOUR)
    four.start()
    assert four.admission.needed_gpus == 4


def test_no_room_is_not_the_end() -> None:
    room = [Room(slots=0)]
    queue = InOrder([1])
    admission = Admission(queue, room=lambda: room[0])
    assert admission.next_trial() is None
    assert not admission.is_over
    room[0] = FOUR
    assert admission.next_trial() is not None


@pytest.mark.parametrize("seed", range(20))
def test_every_trial_gets_its_turn_and_gpus_are_idle_only_for_one_who_waits(seed: int) -> None:
    chance = random.Random(seed)
    sizes = [chance.choice((1, 1, 1, 2, 3, 4)) for _ in range(60)]
    four = machines(sizes, FOUR)
    ran = four.start()
    while four.running:
        assert four.held <= 4
        if four.queue.left and four.held < 4:
            assert four.admission.needed_gpus > 4 - four.held, "somebody waits for more than is free"
        ran += four.end(chance.randrange(len(four.running)))
    assert sorted(ran) == sorted(sizes)
    assert four.admission.is_over
