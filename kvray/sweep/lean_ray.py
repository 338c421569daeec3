"""A private Ray without what a sweep on one machine never uses.

Ray offers no option for its processes, so private names of it are replaced while it starts. Where a version lacks them,
those processes run as Ray has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

NO_WORKERS_AHEAD: Mapping[str, bool] = {
    # Ray starts one worker for each CPU in advance. Slots have workers of their own, and use none of these.
    "enable_worker_prestart": False,
    "prestart_worker_first_driver": False,
}
"""For Ray's `_system_config`."""
_UNUSED = (
    "start_monitor",  # asks for further machines
    "start_log_monitor",  # sends the workers' output to the driver, which has said that it wants none
)
"""Methods of Ray's `Node`."""


@contextmanager
def lean_ray() -> Iterator[None]:
    """For the length of `ray.init`."""
    from ray._private.node import Node

    before = {name: getattr(Node, name) for name in _UNUSED if hasattr(Node, name)}
    for name in before:
        setattr(Node, name, _start_nothing)
    try:
        yield
    finally:
        for name, start in before.items():
            setattr(Node, name, start)


def _start_nothing(self: Any) -> None:
    del self
