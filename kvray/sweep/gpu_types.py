"""Which nodes of a cluster measure, where it has GPUs of several types, which Ray calls accelerator types."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from kvray.errors import SweepError

PREFIX = "accelerator_type:"
TOKEN_SHARE = 0.001
"""How much of a node's accelerator type a trial takes: a node has 1, and any number of trials."""
_logger = logging.getLogger("kvray.sweep")


def gpu_type_of(node: Mapping[str, float]) -> str | None:
    """The accelerator type of a node's GPUs, e.g. `A100`; `None` where Ray does not know it, or there is no GPU."""
    names = (name.removeprefix(PREFIX) for name in node if name.startswith(PREFIX))
    return next(names, None) if node.get("GPU", 0.0) >= 1 else None


def nodes_of_type(nodes: Sequence[Mapping[str, float]], gpu_type: str | None) -> list[Mapping[str, float]]:
    """Those of `nodes` that have GPUs of that type; all where none is named."""
    return [node for node in nodes if gpu_type is None or gpu_type_of(node) == gpu_type]


def gpus_of_type(nodes: Sequence[Mapping[str, float]], gpu_type: str | None) -> int:
    """How many GPUs of that type there are."""
    return sum(int(node.get("GPU", 0.0)) for node in nodes_of_type(nodes, gpu_type))


def measured_types(nodes: Sequence[Mapping[str, float]], asked: str | None) -> tuple[str | None, ...]:
    """The types of GPU that a sweep measures on, each by itself: `asked`, else all that Ray knows, the one that the
    cluster has most GPUs of first; `(None,)` where it knows none.

    Raises:
        SweepError: no node has GPUs of the type that was asked for.
    """
    gpus: Counter[str | None] = Counter()
    for node in nodes:
        if node.get("GPU", 0.0) >= 1:
            gpus[gpu_type_of(node)] += int(node["GPU"])
    known = sorted((one for one in gpus if one is not None), key=lambda one: (-gpus[one], one))
    if asked is not None:
        return (_spelled_as(asked, known),)
    if known and gpus[None]:
        _logger.warning("Ray does not know the type of %d GPUs: nothing is measured on them.", gpus[None])
    return tuple(known) or (None,)


def _spelled_as(asked: str, known: Sequence[str]) -> str:
    found = next((one for one in known if one.lower() == asked.lower()), None)
    if found is None:
        there = f"It has {', '.join(known)}." if known else "It names no type of its GPUs."
        raise SweepError(f"The cluster has no GPUs of type {asked!r}.", hint=there)
    return found
