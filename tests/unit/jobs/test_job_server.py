"""What is wrong with a job server is one line from every command, before it does anything: real answers over HTTP."""

from __future__ import annotations

import contextlib
import http.server
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray import __version__ as ray_version

from kvray.cli.app import run
from kvray.errors import SweepError
from kvray.jobs import troubles
from kvray.jobs.client import JobServer

pytestmark = pytest.mark.spawns
COMMANDS = [
    ["submit", "--address", "ADDRESS", "tune", "fake:x"],
    ["jobs", "list", "--address", "ADDRESS"],
    ["jobs", "list", "--json", "--address", "ADDRESS"],
    *(["jobs", name, "--address", "ADDRESS", "raysubmit_1"] for name in ("status", "logs", "stop", "fetch")),
    ["jobs", "logs", "--follow", "--address", "ADDRESS", "raysubmit_1"],
]


@dataclass(frozen=True)
class Answer:
    """What a server says to every request."""

    status: int = 200
    body: bytes = b"{}"


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Start a server; returns its address."""
    servers: list[http.server.HTTPServer] = []

    def start(answer: Answer) -> str:
        class Answers(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == "/api/version", "nothing else is asked"
                self.send_response(answer.status)
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: the test reads what the command says."""

        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Answers))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def only_line(command: list[str], address: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert run([one.replace("ADDRESS", address) for one in command], verbose=False) in (2, 11)
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    return said.err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_tells_in_one_line_what_is_wrong_with_the_job_server(
    command: list[str],
    serve: Callable[[Answer], str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 32)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    another_ray = Answer(body=json.dumps({"ray_version": "2.9.9"}).encode())
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert f"No job server answers at {nobody}: Connection refused." in only_line(command, nobody, capsys)
    assert "is not the address of a job server. Give that" in only_line(command, "127.0.0.1:6379", capsys)
    assert "does not accept the token in RAY_AUTH_TOKEN" in only_line(command, serve(Answer(status=403)), capsys)
    assert "is not a Ray job server. Give the address" in only_line(command, serve(Answer(body=b"<html>")), capsys)
    assert "is not a Ray job server. Give the address" in only_line(command, serve(Answer(status=404)), capsys)
    assert "has Ray 2.9.9, and this machine has Ray" in only_line(command, serve(another_ray), capsys)


def test_a_token_file_that_is_not_there_is_named(serve: Callable[[Answer], str]) -> None:
    """In a process of its own: Ray remembers whether a token was needed before."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-m", "kvray", "jobs", "list", "--address", serve(Answer(status=401))],
        env={**plain, "RAY_AUTH_TOKEN_PATH": "/nowhere/token"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == SweepError.exit_code
    assert "RAY_AUTH_TOKEN_PATH names '/nowhere/token', which cannot be read or is empty" in done.stderr


def test_what_a_program_collects_of_rays_log_is_left_alone(
    serve: Callable[[Answer], str], capsys: pytest.CaptureFixture[str]
) -> None:
    collecting = logging.NullHandler(level=logging.WARNING)
    logging.getLogger("ray").addHandler(collecting)
    try:
        only_line(["jobs", "list", "--address", "ADDRESS"], serve(Answer(status=404)), capsys)
        assert collecting.level == logging.WARNING
    finally:
        logging.getLogger("ray").removeHandler(collecting)


class Starting(http.server.BaseHTTPRequestHandler):
    """A job server that has no agent for the first `refusals` jobs."""

    refusals = 0

    def do_GET(self) -> None:
        self._answer(
            200, json.dumps({"version": "4", "ray_version": ray_version, "ray_commit": "", "session_name": ""})
        )

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if Starting.refusals:
            Starting.refusals -= 1
            self._answer(500, "No available agent to submit job, please try again later.")
        else:
            self._answer(200, json.dumps({"job_id": "1", "submission_id": "raysubmit_1"}))

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def starting() -> Iterator[JobServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Starting)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield JobServer(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def test_a_cluster_that_has_just_started_is_asked_again_and_that_is_said_once(
    starting: JobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(troubles, "_AGENT_PAUSE_S", 0.0)
    monkeypatch.setattr(Starting, "refusals", 3)
    with caplog.at_level(logging.INFO, logger="kvray.jobs"):
        assert starting.submit(entrypoint="x", folder=tmp_path) == "raysubmit_1"
    assert [one.getMessage() for one in caplog.records if one.name == "kvray.jobs"] == [
        "the cluster was just started and takes no jobs yet; trying again for half a minute"
    ]
    monkeypatch.setattr(troubles, "_AGENT_WAIT_S", 0.0)
    monkeypatch.setattr(Starting, "refusals", 3)
    with pytest.raises(SweepError, match=r"starts no jobs.*needs some seconds more"):
        starting.submit(entrypoint="x", folder=tmp_path)


def test_rays_own_port_is_told_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    """It speaks gRPC, and greets with a frame of HTTP/2."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(b"\x00\x00\x18\x04\x00\x00\x00\x00\x00\x00\x04\x00\x40\x00\x00")

        threading.Thread(target=answer, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        for command in COMMANDS:
            said = only_line(command, address, capsys)
            assert f"What answers at {address} does not speak HTTP." in said
            assert "the dashboard's port, 8265 by default: --address http://127.0.0.1:8265." in said
        server.shutdown(socket.SHUT_RDWR)
