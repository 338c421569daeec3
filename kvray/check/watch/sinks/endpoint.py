"""`Endpoint`: answers Prometheus on this machine's loopback, in threads of its own, as long as the watch runs."""

from __future__ import annotations

import http.server
import ipaddress
import re
import socket
import threading
from typing import Any

from kvray import __version__
from kvray.check.watch.sinks.exposition import CONTENT_TYPE
from kvray.errors import InvalidValueError, OutputError

_SLOWEST_REQUEST_S = 5.0
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")


class Endpoint:
    """Serves one text at `/metrics`.

    Args:
        listen: `HOST:PORT` of the loopback; port 0 takes a free one. Other addresses are refused, because there is no
            encryption and no password.

    Raises:
        InvalidValueError: it is no such address.
    """

    def __init__(self, listen: str) -> None:
        self._address = _loopback_address(listen)
        self._server: _Server | None = None

    def open(self) -> None:
        """Listen from now on.

        Raises:
            OutputError: the port is in use, or nobody but root may use it.
        """
        host, port = self._address
        try:
            self._server = _Server(host, port)
        except OSError as error:
            raise OutputError(
                f"Cannot listen on {_shown(host, port)} for Prometheus: {error.strerror}.",
                hint="Choose another port with --listen, or end what uses this one.",
            ) from error
        threading.Thread(target=self._server.serve_forever, name="kvray metrics", daemon=True).start()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:9090/metrics`; call it after `open`."""
        assert self._server is not None
        host, port = self._server.server_address[:2]
        return f"http://{_shown(str(host), int(port))}/metrics"

    def publish(self, text: str) -> None:
        """Answer with `text` from now on."""
        if self._server is not None:
            self._server.text = text

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def _loopback_address(listen: str) -> tuple[str, int]:
    hint = "Give one like 127.0.0.1:9090. Others reach it through a proxy of yours, or by --prometheus-file."
    found = _ADDRESS.fullmatch(listen)
    if found is None or int(found["port"]) > 65535:
        raise InvalidValueError(f"--listen {listen!r} is no HOST:PORT.", hint=hint)
    host = found["six"] or found["host"]
    address = "127.0.0.1" if host.lower() == "localhost" else host
    try:
        is_loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        raise InvalidValueError(f"--listen {listen!r}: {host!r} is no IP address.", hint=hint) from None
    if not is_loopback:
        raise InvalidValueError(f"--listen {listen!r} would be open to other machines.", hint=hint)
    return address, int(found["port"])


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_port = False

    def __init__(self, host: str, port: int) -> None:
        self.text = ""
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without asking a name server for this host's name, which can take seconds."""
        super(http.server.HTTPServer, self).server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves in the middle is no trouble of the watch's."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = _SLOWEST_REQUEST_S
    server_version = f"kvray/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        """The metrics."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Their headers."""
        self._answer(with_body=False)

    def log_message(self, format: str, *arguments: object) -> None:
        """Requests are not worth a line."""

    def _answer(self, *, with_body: bool) -> None:
        known = self.path.partition("?")[0] == "/metrics"
        body = self.server.text.encode() if known else b"The metrics are at /metrics.\n"
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", CONTENT_TYPE if known else "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)
