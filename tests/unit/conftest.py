"""Unit tests start no process and reach no network, unless they say so with `@pytest.mark.spawns`."""

from __future__ import annotations

import socket
import subprocess
from typing import NoReturn

import pytest


@pytest.fixture(autouse=True)
def _guard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("spawns"):
        return

    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise AssertionError("a unit test starts no process and opens no connection; mark it `spawns` if it must")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
