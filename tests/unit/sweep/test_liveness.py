"""Servers of a Ray that die: real sockets, real processes."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from kvray.sweep.liveness import ClusterServers, OwnServers, Server

pytestmark = pytest.mark.spawns


def server_at(listening: socket.socket, patience_s: float) -> Server:
    host, port = listening.getsockname()
    return Server(what="its head", host=host, port=port, patience_s=patience_s)


def test_a_server_that_does_not_answer_any_more_is_dead_after_its_patience() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = server_at(listening, patience_s=0.3)
        liveness = ClusterServers([server])
        assert liveness.death() is None
        time.sleep(0.4)
        assert liveness.death() is None, "it answered meanwhile"
    assert liveness.death() is None, "it may come back"
    time.sleep(0.4)
    assert liveness.death() == f"its head at 127.0.0.1:{server.port} does not answer any more"


def test_a_server_that_comes_back_in_time_lives() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = server_at(listening, patience_s=60.0)
        liveness = ClusterServers([server])
    assert liveness.death() is None
    with socket.create_server((server.host, server.port)):
        assert liveness.death() is None


def test_a_server_that_was_started_anew_is_silent_until_it_can_tell_and_then_dead() -> None:
    answers: list[bool | OSError] = [OSError("not up yet"), False]

    def is_same() -> bool:
        if isinstance(answer := answers.pop(0), OSError):
            raise answer
        return answer

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = replace(server_at(listening, patience_s=60.0), is_same=is_same)
        liveness = ClusterServers([server])
        assert not liveness.is_silent()
        assert len(answers) == 2, "asked only after a silence"
    assert liveness.is_silent()
    with socket.create_server((server.host, server.port)):
        assert liveness.is_silent(), "it cannot tell yet"
        assert liveness.death() == f"its head at 127.0.0.1:{server.port} was started anew and does not know this sweep"
        assert liveness.is_silent(), "nothing may be asked of it"


def test_a_server_that_comes_back_as_the_same_is_not_silent_any_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = server_at(listening, patience_s=60.0)
        liveness = ClusterServers([server])
    assert liveness.is_silent()
    with socket.create_server((server.host, server.port)):
        assert not liveness.is_silent()


def test_an_own_server_that_was_killed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    child = psutil.Process(process.pid)
    monkeypatch.setattr(psutil.Process, "name", lambda self: "raylet" if self == child else "other")
    liveness = OwnServers()
    assert liveness.death() is None
    process.kill()
    try:
        deadline = time.monotonic() + 240
        while liveness.death() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert liveness.death() == "its process 'raylet' died", "a zombie is dead"
    finally:
        process.wait()
