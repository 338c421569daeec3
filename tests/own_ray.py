"""A Ray that a test starts by itself, and that leaves its process as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from kvray.sweep.loopback import forget_token, recall_auth_mode

_MODE = "RAY_AUTH_MODE"


@contextmanager
def own_ray(*folders: str, **options: Any) -> Iterator[Any]:
    """`ray.init` with `options`, two CPUs and workers that import from `folders` as well.

    Ray switches tokens on in the environment of the process that starts it and leaves it so: a cluster that a later
    test starts in this process would ask for one.
    """
    before = os.environ.get(_MODE)
    paths = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    workers = {"runtime_env": {"env_vars": {"PYTHONPATH": paths}}} if folders else {}
    quiet = {"include_dashboard": False, "log_to_driver": False}
    try:
        yield ray.init(**{"address": "local", "num_cpus": 2, **quiet, **workers, **options})
    finally:
        ray.shutdown()
        os.environ.pop(_MODE, None)
        if before is not None:
            os.environ[_MODE] = before
        forget_token()
        recall_auth_mode(before)
