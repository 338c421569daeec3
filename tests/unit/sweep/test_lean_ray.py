from __future__ import annotations

from ray._private.node import Node

from kvray.sweep.lean_ray import lean_ray


def test_ray_is_as_before_once_it_has_started() -> None:
    before = (Node.start_monitor, Node.start_log_monitor)
    with lean_ray():
        assert Node.start_monitor not in before
        assert Node.start_log_monitor not in before
    assert (Node.start_monitor, Node.start_log_monitor) == before
