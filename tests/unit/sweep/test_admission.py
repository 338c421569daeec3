"""Trials of one GPU and of several on the same machines, by a test that plays Ray."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from queue_samples import BASELINE, make_queue

from kvray.candidate import DeviceType
from kvray.record import TrialResult
from kvray.sweep.admission import WAITS_S, Admission
from kvray.sweep.capacity import NodeRoom, Room
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

    def is_measured_whole(self, candidate_id: str) -> bool:
        return False


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
    return Machines(Admission(queue, room=lambda: room, most_gpus=lambda: max(gpus)), queue, [])


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


def on_nodes(**gpus: int) -> Room:
    """Nodes with so many GPUs, and as many slots."""
    nodes = tuple(NodeRoom(node_id=name, slots=held, gpus=held) for name, held in gpus.items())
    return Room(slots=sum(gpus.values()), gpus=sum(gpus.values()), largest=max(gpus.values()), nodes=nodes)


def placed(some: Machines) -> list[tuple[str | None, int]]:
    return [(task.node, task.gpus) for task in some.running]


def test_trials_of_one_gpu_alone_are_left_to_ray() -> None:
    two = machines([1, 1, 1], on_nodes(a=2, b=2))
    two.start()
    assert placed(two) == [(None, 1)] * 3


def test_small_trials_share_a_node_so_that_another_one_stays_whole_for_a_large_one() -> None:
    two = machines([1, 1, 2], on_nodes(a=2, b=2))
    two.start()
    assert placed(two) == [("a", 1), ("a", 1), ("b", 2)]


def test_the_gpus_of_one_node_are_gathered_and_the_others_go_on_working() -> None:
    two = machines([1, 1, 1, 1, 2, 1, 1, 1, 1], on_nodes(a=2, b=2))
    two.start()
    assert placed(two) == [("a", 1), ("a", 1), ("b", 1), ("b", 1)]
    assert two.end(0) == [], "the first GPU of a is kept"
    assert two.end(1) == [1], "the node that is not gathered"
    assert placed(two) == [("a", 1), ("b", 1), ("b", 1)]
    assert two.end(0) == [2]
    assert placed(two)[-1] == ("a", 2)


def test_every_large_trial_that_waits_gathers_a_node_of_its_own() -> None:
    two = machines([1, 1, 1, 1, 2, 2], on_nodes(a=2, b=2))
    two.start()
    assert [two.end(0), two.end(1)] == [[], []]
    assert [two.end(0), two.end(0)] == [[2], [2]]
    assert sorted(placed(two)) == [("a", 2), ("b", 2)]


def test_a_trial_that_waits_takes_a_node_that_joins_and_one_whose_node_leaves_gathers_another() -> None:
    rooms = [on_nodes(a=2, b=2)]
    queue = InOrder([1, 1, 1, 2, 1])
    two = Machines(Admission(queue, room=lambda: rooms[-1], most_gpus=lambda: 2), queue, [])
    assert two.start() == [1, 1, 1]
    rooms.append(on_nodes(a=2, b=2, c=2))
    assert two.start() == [2, 1]
    assert placed(two)[-2:] == [("c", 2), ("b", 1)]

    queue = InOrder([1, 1, 1, 2])
    two = Machines(Admission(queue, room=lambda: rooms[-1], most_gpus=lambda: 2), queue, [])
    rooms.append(on_nodes(a=2, b=2))
    assert two.start() == [1, 1, 1]
    on_a, on_b = two.running[0], two.running[2]
    rooms.append(on_nodes(a=2))
    two.admission.next_trial()
    assert (two.admission.is_stranded(on_a), two.admission.is_stranded(on_b)) == (False, True)
    assert two.end(2) == []
    assert [two.end(0), two.end(0)] == [[], [2]]
    assert placed(two) == [("a", 2)]


def test_slots_of_a_node_bound_its_trials_whatever_gpus_it_has() -> None:
    room = Room(slots=2, gpus=8, largest=8, nodes=(NodeRoom(node_id="a", slots=2, gpus=8),))
    one = machines([2, 1, 4], room)
    assert one.start() == [2, 1]
    assert one.end(0) == [4]


def test_a_trial_whose_node_others_hold_is_placed_on_another_one_that_is_not_taken() -> None:
    now = [0.0]
    queue = InOrder([1, 2, 1])
    two = Machines(
        Admission(queue, room=lambda: on_nodes(a=1, b=2), most_gpus=lambda: 2, clock=lambda: now[0]), queue, []
    )
    two.start()
    assert placed(two) == [("a", 1), ("b", 2)]
    small, large = two.running
    now[0] = WAITS_S
    assert not two.admission.is_stranded(small)
    now[0] += 1.0
    assert not two.admission.is_stranded(large), "there is no other node that is large enough"
    now[0] += 2 * WAITS_S + 600.0
    assert two.admission.is_stranded(small)
    two.running.remove(small)
    two.admission.ended(small)
    queue.left.insert(0, small)
    assert two.start() == [1]
    assert placed(two)[-1] == ("a", 1), "the only one with a free GPU is taken when nothing else is left"
    two.end(0)
    assert placed(two)[-1] == ("b", 1)


NODES = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 8), min_size=1)


@given(st.data())
def test_on_any_nodes_every_trial_has_its_turn_no_node_is_overbooked_and_no_gpu_is_idle_but_those_gathered(
    data: st.DataObject,
) -> None:
    gpus = data.draw(NODES)
    most = max(gpus.values())
    sizes = data.draw(st.lists(st.integers(1, most), min_size=1, max_size=40))
    some = machines(sizes, on_nodes(**gpus))
    started = some.start()
    while some.running:
        held = {name: sum(task.gpus for task in some.running if task.node == name) for name in gpus}
        assert all(held[name] <= gpus[name] for name in gpus) or most == 1
        if some.queue.left and sum(gpus.values()) > some.held:
            waiting = [size for size in sizes if size > 1]
            assert waiting, "single GPUs never wait"
            assert some.admission.needed_gpus > 1, "somebody waits for a node"
        started += some.end(data.draw(st.integers(0, len(some.running) - 1)))
    assert sorted(started) == sorted(sizes)
    assert some.admission.is_over


@given(st.data())
def test_on_equal_nodes_each_that_has_an_idle_gpu_is_gathered_for_one_who_waits(data: st.DataObject) -> None:
    nodes, gpus = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    sizes = data.draw(st.lists(st.integers(1, gpus), min_size=1, max_size=40))
    names = "abcde"[:nodes]
    some = machines([*sizes, gpus], on_nodes(**dict.fromkeys(names, gpus)))
    begun = len(some.start())
    while some.running:
        waiting = len(sizes) + 1 - len(some.queue.left) - begun
        held = [sum(task.gpus for task in some.running if task.node in (name, None)) for name in names]
        if some.queue.left and gpus > 1:
            assert sum(one < gpus for one in held) <= waiting
        begun += len(some.end(data.draw(st.integers(0, len(some.running) - 1))))


def test_a_trial_keeps_its_node_when_no_large_one_is_left() -> None:
    most = [2]
    queue = InOrder([2, 1, 1])
    two = Machines(Admission(queue, room=lambda: on_nodes(a=2, b=2), most_gpus=lambda: most[0]), queue, [])
    two.start()
    most[0] = 1
    two.end(0)
    assert [two.admission.is_stranded(one) for one in two.running] == [False, False]


@given(st.data())
def test_nobody_is_overtaken_for_long(data: st.DataObject) -> None:
    """Trials end in the order in which they began: one that waits starts before the nodes have been filled twice."""
    gpus = data.draw(NODES)
    sizes = data.draw(st.lists(st.integers(1, max(gpus.values())), min_size=1, max_size=60))
    some = machines(sizes, on_nodes(**gpus))
    some.start()
    order = [int(task.spec.trial_id) for task in some.running]
    while some.running:
        before = len(some.running) - 1
        some.end(0)
        order += [int(task.spec.trial_id) for task in some.running[before:]]
    assert sorted(order) == list(range(len(sizes)))
    for place, number in enumerate(order):
        overtakers = [one for one in order[:place] if one > number]
        assert len(overtakers) <= 2 * sum(gpus.values())


@given(st.data())
def test_nodes_that_leave_and_join_lose_nothing(data: st.DataObject) -> None:
    """What ran on a node that left comes back through the queue."""
    gpus = data.draw(NODES)
    room = [on_nodes(**gpus)]
    sizes = data.draw(st.lists(st.integers(1, max(gpus.values())), min_size=1, max_size=30))
    queue = InOrder(sizes)
    some = Machines(Admission(queue, room=lambda: room[0], most_gpus=lambda: max(sizes)), queue, [])
    ended = 0
    some.start()
    for _ in range(3):
        left = data.draw(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 8), min_size=1))
        room[0] = on_nodes(**left)
        some.start()
        for task in [one for one in some.running if some.admission.is_stranded(one)]:
            some.running.remove(task)
            some.admission.ended(task)
            queue.running -= 1
            queue.left.append(task)
        some.start()
        if some.running:
            some.end(0)
            ended += 1
    room[0] = on_nodes(**gpus)
    some.start()
    while some.running:
        some.end(0)
        ended += 1
    assert ended == len(sizes)
    assert some.admission.is_over
