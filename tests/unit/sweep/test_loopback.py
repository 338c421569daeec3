from __future__ import annotations

import logging
import os

import pytest

from kvray.sweep.loopback import is_loopback, loopback_ray, warn_of_open_cluster


@pytest.mark.parametrize("address", ["10.0.0.7:6379", "head.example:6379", "[fd00::7]:6379", "0.0.0.0:6379"])
def test_a_cluster_on_a_network_comes_with_one_line_of_warning(
    address: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("kvray"), "propagate", True)
    with caplog.at_level(logging.WARNING, "kvray.sweep"):
        warn_of_open_cluster(address)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"Ray at {address} listens on a network: whoever reaches its ports can run")
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "localhost:6379", "[::1]:6379", "auto", "nonsense"])
def test_a_cluster_on_this_machines_loopback_comes_with_none(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kvray.sweep"):
        warn_of_open_cluster(address)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("10.0.0.1", False), ("a.b", False)]
)
def test_loopback_is_told_from_other_hosts(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_ray_is_as_before_once_it_has_started() -> None:
    from ray._private import node, ray_constants

    before = (dict(os.environ), ray_constants.ENABLE_RAY_CLUSTER, node.Node.start_api_server)
    with loopback_ray():
        assert not ray_constants.ENABLE_RAY_CLUSTER
    assert (dict(os.environ), ray_constants.ENABLE_RAY_CLUSTER, node.Node.start_api_server) == before
