"""Room for trials as nodes come and go, by a clock of the test's own."""

from __future__ import annotations

import logging

import pytest

from kvray.errors import SweepError
from kvray.sweep.capacity import NODELESS_S, Capacity, Room


class Cluster:
    """So many trials have room, at a time of the test's choice. Counts how often it is asked."""

    def __init__(self) -> None:
        self.room = 2
        self.largest = 0
        self.now_s = 0.0
        self.asked = 0

    def look(self) -> Room:
        self.asked += 1
        return Room(slots=self.room, gpus=self.room * self.largest, largest=self.largest)

    def capacity(self, *, follows_nodes: bool) -> Capacity:
        return Capacity(Room(slots=2), room=self.look, follows_nodes=follows_nodes, clock=lambda: self.now_s)


@pytest.mark.parametrize(("follows_nodes", "later"), [(True, 3), (False, 2)])
def test_nodes_that_join_count_where_no_number_of_slots_was_asked_for(follows_nodes: bool, later: int) -> None:
    cluster = Cluster()
    capacity = cluster.capacity(follows_nodes=follows_nodes)
    assert capacity().slots == 2
    cluster.room, cluster.now_s = 3, 1.5
    assert capacity().slots == later


def test_ray_is_asked_once_a_second() -> None:
    cluster = Cluster()
    capacity = cluster.capacity(follows_nodes=True)
    for moment in range(20):
        cluster.now_s = moment / 10
        capacity()
        capacity.check()
    assert cluster.asked == 2


@pytest.mark.parametrize("follows_nodes", [True, False])
def test_without_a_node_a_sweep_waits_says_so_once_and_ends_in_the_end(
    follows_nodes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster()
    capacity = cluster.capacity(follows_nodes=follows_nodes)
    cluster.room = 0
    with caplog.at_level(logging.WARNING, logger="kvray.sweep"):
        for moment in (0.0, 2.0, NODELESS_S - 1, NODELESS_S):
            cluster.now_s = moment
            capacity.check()
    assert [record.getMessage() for record in caplog.records] == [
        "No node is left that has room for a trial; waiting 10 minutes for one."
    ]
    cluster.now_s = NODELESS_S + 2
    with pytest.raises(SweepError, match="No node has had room for a trial for 10 minutes"):
        capacity.check()


def test_a_node_that_comes_back_ends_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster()
    capacity = cluster.capacity(follows_nodes=True)
    for moment, room in ((0.0, 0), (2.0, 1), (4.0, 0), (NODELESS_S + 2, 0)):
        cluster.now_s, cluster.room = moment, room
        capacity.check()
    assert len(caplog.records) == 2


def test_a_trial_that_no_node_is_large_enough_for_is_waited_for_as_well(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster()
    cluster.largest = 2
    capacity = cluster.capacity(follows_nodes=True)
    capacity.check(2)
    capacity.check(4)
    assert [record.getMessage() for record in caplog.records] == [
        "No node is left that has room for a trial of 4 GPUs; waiting 10 minutes for one."
    ]
    cluster.now_s = NODELESS_S + 1
    with pytest.raises(SweepError, match="No node has had room for a trial for 10 minutes"):
        capacity.check(4)
    cluster.now_s, cluster.largest = NODELESS_S + 3, 4
    capacity.check(4)
