"""A private Ray that nobody else can reach and that reaches nobody: every port on loopback, no dashboard process.

Whoever reaches a port of Ray runs code as the user who started it. Ray offers no option for either, so two private
names of it are replaced while it starts; where a version lacks them, `check_loopback` says so.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kvray.environment import changed_environment

LOOPBACK = "127.0.0.1"
_NO_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Made for laptops whose firewall asks about every open port: `0` has all of Ray's processes use loopback."""
_logger = logging.getLogger("kvray.sweep")


@contextmanager
def loopback_ray() -> Iterator[dict[str, Any]]:
    """For the length of `ray.init`, which takes what this yields as further options."""
    from ray._private import node, ray_constants

    constant = getattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    start = getattr(node.Node, "start_api_server", None)
    ray_constants.ENABLE_RAY_CLUSTER = False  # read from the environment when Ray was imported
    # It runs even without a dashboard, and asks the metadata services of three clouds who they are.
    node.Node.start_api_server = _no_api_server
    try:
        with changed_environment({_NO_CLUSTER: "0"}):
            yield {"include_dashboard": False, "_node_ip_address": LOOPBACK}
    finally:
        node.Node.start_api_server = start
        ray_constants.ENABLE_RAY_CLUSTER = constant


@contextmanager
def token_of_its_own() -> Iterator[None]:
    """While a private Ray starts: it asks for a token that lies on no disk. Ray's own, in ~/.ray/auth_token, can be
    read by whoever may read that folder."""
    token = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(16)
    with changed_environment({"RAY_AUTH_TOKEN": token}):
        forget_token()
        yield


def forget_token() -> None:
    """Have Ray, which remembers the first token that it has found, look for one anew."""
    import ray

    loader = getattr(ray._raylet, "AuthenticationTokenLoader", None)  # not in an older Ray
    if loader is not None:
        loader.instance().reset_cache()


def recall_auth_mode(mode: str | None) -> None:
    """Have Ray, which has switched tokens on for a Ray that has ended, do as it did before: it would send a token to
    the next cluster of this process, also where that asks for none, and each worker there would be refused.

    Args:
        mode: RAY_AUTH_MODE as it was before.
    """
    import ray

    with changed_environment({"RAY_AUTH_MODE": mode}):
        ray._raylet.Config.initialize("")


def check_loopback() -> None:
    """Say so where the private Ray that was started listens on more than loopback."""
    import ray

    address = ray.util.get_node_ip_address()
    if not is_loopback(address):
        _logger.warning(
            "This version of Ray listens on %s instead of loopback. Whoever reaches its ports can run code as you.",
            address,
        )


def warn_of_open_cluster(address: str) -> None:
    """Say what it means to use the cluster at `address`, unless that is this very machine's loopback."""
    host = address.rpartition(":")[0].strip("[]")
    if host and not is_loopback(host):
        _logger.warning(
            "Ray at %s listens on a network: whoever reaches its ports can run code as you, on every node. Keep them "
            "behind a firewall.",
            address,
        )


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is this machine seen from itself only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _no_api_server(self: Any, **options: object) -> None:
    del options
    self._webui_url = ""
