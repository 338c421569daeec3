"""The private names of Ray that kvray reads or replaces. When a new Ray breaks one, the test for it says which."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import ray

from kvray.sweep import imports

READ_IN = (2, 60)
"""Minor version of Ray in which every name below was read, and its use checked."""


def named(path: str) -> Any:
    """The object at `module:attribute.attribute`."""
    module, _, attributes = path.partition(":")
    found: Any = importlib.import_module(module)
    for name in filter(None, attributes.split(".")):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize(
    ("path", "is_as_expected"),
    [
        # sweep/loopback.py: no port beyond loopback, no dashboard process, a token that lies on no disk
        ("ray._private.ray_constants:ENABLE_RAY_CLUSTER", lambda found: isinstance(found, bool)),
        ("ray._private.node:Node.start_api_server", callable),
        ("ray._raylet:AuthenticationTokenLoader.instance", callable),
        # sweep/lean_ray.py: no processes that a sweep does not use
        ("ray._private.node:Node.start_monitor", callable),
        ("ray._private.node:Node.start_log_monitor", callable),
        # sweep/joining.py: the cluster's token
        ("ray._private.services:canonicalize_bootstrap_address", callable),
        ("ray._private.authentication.authentication_token_setup:ensure_token_if_auth_enabled", callable),
        ("ray._raylet:Config.initialize", callable),
        ("ray._raylet:GcsClient", callable),
        # sweep/session.py: servers in a process group of their own, and their logs
        ("ray._private.services:ConsolePopen", inspect.isclass),
        ("ray._private.worker:global_worker", lambda found: hasattr(found, "node")),
        # sweep/imports.py: workers import nothing of the working folder
        (f"ray._private.ray_constants:{imports._UV_HOOK}", lambda found: isinstance(found, bool)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_private_name_of_ray_is_there(path: str, is_as_expected: Callable[[Any], bool]) -> None:
    try:
        found = named(path)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"Ray {ray.__version__} has no {path} any more (read in {READ_IN}): {error}")
    assert is_as_expected(found), f"{path} is {found!r} in Ray {ray.__version__} (read in {READ_IN})"
