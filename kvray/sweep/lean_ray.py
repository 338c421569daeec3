"""Ray without what a sweep never uses: processes of a private Ray, and requests of Tune's.

Ray offers no option for them, so private names of it are replaced meanwhile. Where a version lacks them, all is as Ray
has it.
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


@contextmanager
def lean_tune() -> Iterator[None]:
    """For the length of `Tuner.fit`."""
    with _kept_trainables(), _unasked_actors():
        yield


@contextmanager
def _unasked_actors() -> Iterator[None]:
    """Tune asks an actor twice per trial for figures that a trial without results would be shown with, and keeps the
    answers; here it asks for none."""
    from ray.tune.experiment import Trial

    before = Trial.set_ray_actor
    Trial.set_ray_actor = _set_ray_actor
    try:
        yield
    finally:
        Trial.set_ray_actor = before


def _set_ray_actor(trial: Any, ray_actor: Any) -> None:
    trial.temporary_state.ray_actor = ray_actor


@contextmanager
def _kept_trainables() -> Iterator[None]:
    """Tune knows its trainables by name. For every trial it asks Ray's server three times what a name stands for, and
    unpickles the class that comes back; here it remembers the answer."""
    from ray.tune import registry

    known: dict[tuple[str, str], Any] = {}
    names: Any = getattr(registry, "_global_registry", None)
    if not all(hasattr(names, name) for name in ("register", "contains", "get")):
        yield
        return
    register, contains, get = names.register, names.contains, names.get

    def registered(category: str, key: str, value: Any) -> None:
        known.pop((category, key), None)
        register(category, key, value)

    def known_or_got(category: str, key: str) -> Any:
        if (category, key) not in known:
            known[category, key] = get(category, key)
        return known[category, key]

    names.register, names.get = registered, known_or_got
    names.contains = lambda category, key: (category, key) in known or contains(category, key)
    try:
        yield
    finally:
        names.register, names.contains, names.get = register, contains, get


def _start_nothing(self: Any) -> None:
    del self
