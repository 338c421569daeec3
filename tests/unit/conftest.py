"""Unit tests start no process and reach no network, unless they say so with `@pytest.mark.spawns`."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from typing import NoReturn

import pytest
from kvray_logger import logger_as_before


@pytest.fixture(autouse=True)
def _guard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("spawns"):
        return

    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise AssertionError("a unit test starts no process and opens no connection; mark it `spawns` if it must")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def _logger() -> Iterator[None]:
    """A command line that one test runs must not change what the next one hears."""
    with logger_as_before():
        yield
