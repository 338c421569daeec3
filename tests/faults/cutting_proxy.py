"""A TCP proxy whose line can be cut in the middle of an answer."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading


class CuttingProxy:
    """Passes everything to `port` of this machine, and back. `cut_after` cuts the line, `mend` puts it right."""

    def __init__(self, port: int) -> None:
        self._left: float = float("inf")
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy._pass(self.request, port)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """For HTTP."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def cut_after(self, count: int) -> None:
        """Let `count` bytes of answers through, then nothing more."""
        self._left = count

    def mend(self) -> None:
        """Pass everything again."""
        self._left = float("inf")

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()

    def _pass(self, client: socket.socket, port: int) -> None:
        if self._left <= 0:
            return
        with socket.create_connection(("127.0.0.1", port)) as server:
            threading.Thread(target=_pump, args=(client, server), daemon=True).start()
            with contextlib.suppress(OSError):
                while self._left > 0 and (data := server.recv(4096)):
                    self._left -= len(data)
                    client.sendall(data)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
