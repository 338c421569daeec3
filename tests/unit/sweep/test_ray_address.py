"""A cluster that does not answer is found out in seconds; Ray alone takes minutes, with noise on stderr."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvray.errors import SweepError
from kvray.sweep.session import RaySession, _address_hint

pytestmark = pytest.mark.spawns


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port at which nobody listens: bound while the test runs, so that nobody else takes it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


def connect(address: str, scratch: Path) -> None:
    with RaySession(address=address, scratch=scratch) as ray:
        ray.nodes()


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "[::1]:{}", "ray://127.0.0.1:{}"])
def test_an_address_at_which_nobody_listens_is_refused(
    form: str, closed_port: int, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    address = form.format(closed_port)
    expected = rf"^The Ray cluster at '{re.escape(address)}' cannot be reached: \[Errno \d+\] "
    with pytest.raises(SweepError, match=expected):
        connect(address, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_host_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"The Ray cluster at 'nohost\.invalid:6379' cannot be reached: .*[Nn]ame"):
        connect("nohost.invalid:6379", tmp_path)


def test_what_is_no_address_is_refused_by_ray_itself(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"The Ray cluster at 'nonsense' cannot be reached: Invalid address format"):
        connect("nonsense", tmp_path)


def test_of_an_address_at_which_nobody_listens_no_open_ports_are_told(
    closed_port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(logging.getLogger("kvray"), "propagate", True)
    with caplog.at_level(logging.WARNING, "kvray.sweep"), pytest.raises(SweepError):
        connect(f"{socket.gethostname()}:{closed_port}", tmp_path)
    assert caplog.messages == []


def test_rays_client_server_is_refused_with_the_ways_that_work(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"ray://localhost:{server.getsockname()[1]}"
        with pytest.raises(SweepError) as raised:
            connect(address, tmp_path)
    assert str(raised.value) == (
        f"The Ray cluster at '{address}' cannot be used: no sweep can run through Ray's client server. On a machine of "
        "the cluster give --address localhost:6379; from any other send the command to its dashboard: kvray submit "
        "--address http://localhost:8265 …"
    )


def test_a_dashboards_address_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="that is a dashboard's address"):
        connect("http://127.0.0.1:8265", tmp_path)


def test_auto_says_that_it_follows_a_variable_with_a_dashboards_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(SweepError, match=r"follows RAY_ADDRESS, which is 'http:.*': that is a dashboard"):
        connect("auto", tmp_path)


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("localhost", "An address has a port, 6379 unless ray start was given another: --address localhost:6379."),
        ("127.0.0.1:{}", "ray status, run on the cluster's head, shows whether Ray runs there; ray start has said its"),
    ],
)
def test_every_address_that_does_not_work_comes_with_a_next_step(
    address: str, hint: str, closed_port: int, tmp_path: Path
) -> None:
    with pytest.raises(SweepError) as raised:
        connect(address.format(closed_port), tmp_path)
    assert str(raised.value.hint).startswith(hint)
    assert "\n" not in str(raised.value)


def test_where_auto_finds_nothing_the_ways_on_are_told() -> None:
    assert _address_hint("auto") == (
        "Start Ray on this machine with ray start --head, or name a cluster: --address HOST:6379."
    )
