"""Describes a model and fetches its weights on nodes that will measure: the machine that a sweep is started from may
have neither the model's folder nor a way to the hub.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from typing_extensions import override

from kvray.engines.base import DeviceFacts, EngineAdapter, ModelInfo, ModelRequest
from kvray.engines.model_access import ModelAccess
from kvray.engines.offline import offline_environment
from kvray.errors import KvrayError, SweepError, sentence_of

_PATIENCE_S = 10.0
_READS = "A node reads the model, or fetches its weights, which takes a while."
_logger = logging.getLogger("kvray.sweep")


class NodeModels(ModelAccess):
    """The model's files on nodes of the connected Ray.

    Args:
        node_ids: Ray's ids of the nodes that will measure. The first one that answers describes the model.
        check_alive: called while an answer is waited for; what it raises ends the wait.
    """

    def __init__(self, node_ids: Sequence[str], check_alive: Callable[[], None]) -> None:
        self._node_ids = tuple(node_ids)
        self._check_alive = check_alive
        self._asked_id: str | None = None

    @override
    def check(self, adapter: EngineAdapter, request: ModelRequest) -> None:
        """The node does it when it describes the model."""

    @override
    def described(
        self, adapter: EngineAdapter, request: ModelRequest, *, adapts: bool, device: DeviceFacts | None
    ) -> ModelInfo:
        info: ModelInfo = self._asked("described", adapter, request, {"adapts": adapts, "device": device})
        return info

    @override
    def check_quickly(self, adapter: EngineAdapter, request: ModelRequest) -> None:
        self._asked("check_quickly", adapter, request, {})

    @override
    def identified(self, adapter: EngineAdapter, request: ModelRequest, info: ModelInfo) -> ModelInfo:
        identified: ModelInfo = self._asked("identified", adapter, request, {"info": info})
        return identified

    @override
    def readied(self, adapter: EngineAdapter, request: ModelRequest, info: ModelInfo) -> tuple[ModelInfo, ModelRequest]:
        """On one node, and then on all the others at once: each has a cache of its own, unless they share one."""
        ready: tuple[ModelInfo, ModelRequest] = self._asked("readied", adapter, request, {"info": info})
        self.fetch(adapter, ready[1])
        return ready

    @override
    def fetch(self, adapter: EngineAdapter, request: ModelRequest) -> None:
        """On every node that has not done it yet. A node that cannot is told of, and the sweep goes on."""
        answers = [
            (node_id, _ask(node_id, "fetch", adapter, request, {}))
            for node_id in self._node_ids
            if node_id != self._asked_id
        ]
        self._wait_for([answer for _, answer in answers], f"Further nodes that fetch the weights now: {len(answers)}.")
        for node_id, answer in answers:
            try:
                _answer_of(answer)
            except KvrayError as error:
                _logger.warning("Node %s has no weights to measure with: %s", node_id[:12], error)

    def _asked(self, method: str, adapter: EngineAdapter, request: ModelRequest, rest: dict[str, Any]) -> Any:
        """What the first living node says."""
        dead: SweepError | None = None
        for node_id in self._node_ids:
            answer = _ask(node_id, method, adapter, request, rest)
            self._wait_for([answer], _READS)
            try:
                value = _answer_of(answer)
            except SweepError as error:
                dead = dead or error
            else:
                self._asked_id = node_id
                return value
        raise dead or SweepError("No node is left to read the model.")

    def _wait_for(self, answers: Sequence[Any], told: str) -> None:
        import ray

        is_told = False
        while answers and ray.wait(list(answers), num_returns=len(answers), timeout=_PATIENCE_S)[1]:
            self._check_alive()
            if not is_told:
                _logger.warning("%s", told)
                is_told = True


def _ask(node_id: str, method: str, adapter: EngineAdapter, request: ModelRequest, rest: dict[str, Any]) -> Any:
    """Ray's reference to the answer. The worker ends with it: it may have imported the engine's library."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(max_calls=1)(_answered_here).options(
        num_cpus=0, max_retries=1, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
    )
    return task.remote(method, adapter, request, rest)


def _answer_of(answer: Any) -> Any:
    """What a node said.

    Raises:
        KvrayError: what the adapter raised there.
        SweepError: the node died.
    """
    import ray

    try:
        error, value = ray.get(answer)
    except ray.exceptions.RayError as died:
        raise SweepError(f"The node that was to read the model could not: {sentence_of(died)}") from died
    if error is not None:
        kind, message, hint = error
        raise kind(message, hint=hint)
    return value


def _answered_here(
    method: str, adapter: EngineAdapter, request: ModelRequest, rest: dict[str, Any]
) -> tuple[tuple[type[KvrayError], str, str | None] | None, Any]:
    """Runs on the node. An error travels as its parts: Ray would wrap it."""
    try:
        with offline_environment(enabled=request.offline):
            return None, getattr(ModelAccess(), method)(adapter, request, **rest)
    except KvrayError as error:
        return (type(error), error.message, error.hint), None
