"""A Ray, or a cluster of several nodes, that a test starts by itself. Processes that no sweep uses are left out, which
start slowly: dashboard, autoscaler, log monitor and idle workers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray
from ray._private.node import Node
from ray.cluster_utils import Cluster

from kvray.sweep.lean_ray import NO_WORKERS_AHEAD, lean_ray
from kvray.sweep.loopback import forget_token, recall_auth_mode

NOT_NICE = {"worker_niceness": 0}
"""For Ray's `_system_config`. Its workers are at 15 otherwise, and starve while other tests keep all CPUs busy."""
_MODE = "RAY_AUTH_MODE"


@contextmanager
def own_ray(*folders: str, **options: Any) -> Iterator[Any]:
    """`ray.init` with `options`, two CPUs and workers that import from `folders` too; the process is left as it was.

    Ray switches tokens on in the environment of the process that starts it and leaves it so: a cluster that a later
    test starts in this process would ask for one.
    """
    before = os.environ.get(_MODE)
    paths = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    workers = {"runtime_env": {"env_vars": {"PYTHONPATH": paths}}} if folders else {}
    try:
        with _small() as small:
            context = ray.init(
                **{"address": "local", "num_cpus": 2, "log_to_driver": False, **small, **workers, **options}
            )
        yield context
    finally:
        ray.shutdown()
        os.environ.pop(_MODE, None)
        if before is not None:
            os.environ[_MODE] = before
        forget_token()
        recall_auth_mode(before)


def cluster_of(**head: Any) -> Cluster:
    """A cluster whose head is started with the options `head`. `shutdown` ends it, and the nodes that are added."""
    with _small() as small:
        return Cluster(initialize_head=True, head_node_args={**small, **head})


@contextmanager
def _small() -> Iterator[dict[str, Any]]:
    """While a Ray starts, which takes what this yields as further options."""
    with lean_ray(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Node, "start_api_server", _start_nothing)  # it starts without a dashboard too
        yield {"include_dashboard": False, "_system_config": dict(NO_WORKERS_AHEAD) | NOT_NICE}


def _start_nothing(self: Node, **options: object) -> None:
    del options
    self._webui_url = ""
