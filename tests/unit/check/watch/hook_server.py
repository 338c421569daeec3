"""A real HTTP server on loopback that takes alerts, or misbehaves as it is told."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any


class HookServer(http.server.ThreadingHTTPServer):
    """Attributes:
    behaviour: `200`, another status, `hang`, `trickle`, `nonsense`, `307:URL` or
    `refuse:EVENT_ID`; the last word stays.
    taken: the bodies that were answered with 200.
    """

    daemon_threads = True

    def __init__(self, *behaviour: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviour = list(behaviour) or ["200"]
        self.taken: list[dict[str, Any]] = []
        self.asked = 0
        self.headers: list[dict[str, str]] = []
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Handler(http.server.BaseHTTPRequestHandler):
    server: HookServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        server.asked += 1
        server.headers.append({key.title(): value for key, value in self.headers.items()})
        word = server.behaviour[0] if self.path != "/moved" else "200"
        if len(server.behaviour) > 1:
            server.behaviour.pop(0)
        if word == "hang":
            server.ended.wait(20)
        elif word == "trickle":
            self._trickle()
        elif word == "nonsense":
            self.wfile.write(b"\x00\x01 no HTTP\r\n")
        else:
            status, _, location = word.partition(":")
            if status == "refuse":
                status, location = ("400" if json.loads(body)["event_id"] == location else "200"), ""
            if status == "200":
                server.taken.append(json.loads(body))
            self.send_response(int(status))
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _trickle(self) -> None:
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.0 20")
            while not self.server.ended.wait(0.05):
                self.wfile.write(b"X")
                self.wfile.flush()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def hook_server(*behaviour: str) -> Iterator[HookServer]:
    server = HookServer(*behaviour)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()


def soon(condition: Any, wait_s: float = 20.0) -> bool:
    """Whether `condition()` comes true in time."""
    end = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
