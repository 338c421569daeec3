"""Trials on unlike types of GPU: each type has a queue and slots of its own, and all are used at the same time."""

from __future__ import annotations

import pytest
from queue_samples import SPACE, Clock, Deaf, answer, make_queue

from kvray.errors import SweepError
from kvray.record import Role
from kvray.sweep.admission import Admission
from kvray.sweep.batch import QueuedSweep, SweepBatch
from kvray.sweep.capacity import NODELESS_S, Capacity, Room
from kvray.sweep.lanes import Lane, Lanes
from kvray.sweep.searcher import BatchSearcher
from kvray.sweep.slot import GOES_ON, RESULT, TASK
from kvray.sweep.trial_task import TrialTask

SIZES = {"A100": 2, "H100": 1}


def make_lanes(rooms: dict[str, Room], *, clock: Clock | None = None) -> Lanes:
    """`rooms` may be changed while they are used."""

    def lane(name: str) -> Lane:
        queue = make_queue(gpu_type=name, confirm_rounds=1)
        batch = SweepBatch([QueuedSweep(queue=queue, observer=Deaf(), gpu_type=name)])
        capacity = Capacity(rooms[name], room=lambda: rooms[name], follows_nodes=True, clock=clock or Clock())
        return Lane(batch=batch, admission=Admission(batch, room=capacity), capacity=capacity)

    return Lanes({name: lane(name) for name in rooms})


def end(searcher: BatchSearcher, trial_id: str, task: TrialTask) -> None:
    """With the trials that follow it in its slot."""
    while task.then:
        following = task.then[0].spec.trial_id
        searcher.on_trial_result(trial_id, {RESULT: answer(task), GOES_ON: following})
        task = task.left_from(following)
    searcher.on_trial_complete(trial_id, {RESULT: answer(task)})


def all_rooms() -> dict[str, Room]:
    return {name: Room(slots=slots) for name, slots in SIZES.items()}


def test_every_type_is_filled_at_once_and_each_measures_every_candidate_and_confirms_its_own_best() -> None:
    lanes = make_lanes(all_rooms())
    searcher = BatchSearcher(lanes)
    running: dict[str, TrialTask] = {}
    launched: dict[str, list[Role]] = {name: [] for name in SIZES}
    number = 0
    while (config := searcher.suggest(str(number))) != "FINISHED":
        if isinstance(config, dict):
            running[str(number)] = task = config[TASK]
            launched[str(task.spec.gpu_type)] += [one.spec.role for one in (task, *task.then)]
            number += 1
            continue
        held = [str(task.spec.gpu_type) for task in running.values()]
        assert all(held.count(name) <= SIZES[name] for name in SIZES)
        if number <= sum(SIZES.values()):
            assert sorted(held) == ["A100", "A100", "H100"], "no type waits for another"
        end(searcher, *running.popitem())
    assert not running
    assert set(launched) == set(SIZES)
    for roles in launched.values():
        assert len([role for role in roles if role is not Role.CONFIRM]) == len(SPACE)
        assert Role.CONFIRM in roles
    assert lanes.is_over
    assert lanes.is_idle


def test_a_type_whose_nodes_have_left_waits_while_another_one_measures_and_ends_the_sweep_when_it_is_alone() -> None:
    rooms, clock = all_rooms(), Clock()
    lanes = make_lanes(rooms, clock=clock)
    searcher = BatchSearcher(lanes)
    first = searcher.suggest("0")
    assert isinstance(first, dict)
    rooms["H100"] = Room(slots=0)
    clock.now = 2.0
    lanes.check_room()
    clock.now += NODELESS_S + 2.0
    lanes.check_room()
    running = {"0": first[TASK]}
    for number in range(1, 100):
        config = searcher.suggest(str(number))
        if isinstance(config, dict):
            running[str(number)] = config[TASK]
            assert config[TASK].spec.gpu_type == "A100"
        elif running:
            end(searcher, *running.popitem())
    assert not lanes.is_over
    with pytest.raises(SweepError, match="No node has had room for a trial for 10 minutes"):
        lanes.check_room()
