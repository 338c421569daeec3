from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray._private.node import Node
from ray.tune import registry
from ray.tune.experiment import Trial

from kvray.sweep.lean_ray import lean_ray, lean_tune


def test_ray_is_as_before_once_it_has_started() -> None:
    before = (Node.start_monitor, Node.start_log_monitor)
    with lean_ray():
        assert Node.start_monitor not in before
        assert Node.start_log_monitor not in before
    assert (Node.start_monitor, Node.start_log_monitor) == before


def test_tune_asks_once_for_a_trainable_and_again_after_it_was_registered_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    names = registry._Registry(prefix="test")
    monkeypatch.setattr(registry, "_global_registry", names)
    asked: list[str] = []
    get = names.get

    def heard(category: str, key: str) -> Any:
        asked.append(key)
        return get(category, key)

    monkeypatch.setattr(names, "get", heard)
    before = (names.register, names.contains, names.get)
    with lean_tune():
        assert not names.contains(registry.TRAINABLE_CLASS, "slot")
        for value in ("first", "second"):
            names.register(registry.TRAINABLE_CLASS, "slot", value)
            assert [names.get(registry.TRAINABLE_CLASS, "slot") for _ in range(3)] == [value] * 3
            assert names.contains(registry.TRAINABLE_CLASS, "slot")
    assert asked == ["slot", "slot"]
    assert (names.register, names.contains, names.get) == before


def test_an_actor_is_not_asked_for_figures_of_a_trial_that_has_none() -> None:
    trial, before = Trial("slot", stub=True), Trial.set_ray_actor
    with lean_tune():
        trial.set_ray_actor(SimpleNamespace())
        assert trial.temporary_state.ray_actor == SimpleNamespace()
        assert trial.last_result == {"trial_id": trial.trial_id}
        trial.set_ray_actor(None)
        assert trial.temporary_state.ray_actor is None
    assert Trial.set_ray_actor is before
