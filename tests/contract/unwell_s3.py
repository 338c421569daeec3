"""A proxy before an S3 API that can be made unwell."""

from __future__ import annotations

import dataclasses
import select
import socket
import socketserver
import threading


@dataclasses.dataclass
class Illness:
    """What the proxy does to requests: answers 500, cuts uploads in the middle, or passes on half of one and waits.

    Attributes:
        goes_on: cleared while half an upload waits.
        is_waiting: set as soon as one does.
    """

    fails: bool = False
    cuts: bool = False
    halts: bool = False
    goes_on: threading.Event = dataclasses.field(default_factory=threading.Event)
    is_waiting: threading.Event = dataclasses.field(default_factory=threading.Event)


class Proxy(socketserver.BaseRequestHandler):
    """Passes bytes on in both directions, unless it is ill."""

    illness = Illness()
    behind = ("", 0)

    def handle(self) -> None:
        with socket.create_connection(self.behind) as service:
            while ready := select.select([self.request, service], [], [], 20)[0]:
                for one in ready:
                    if not (data := one.recv(65536)) or not self.passed_on(data, one is service, service):
                        return

    def passed_on(self, data: bytes, is_answer: bool, service: socket.socket) -> bool:
        """Whether the connection goes on."""
        if is_answer:
            self.request.sendall(data)
        elif self.illness.fails:
            self.request.sendall(b"HTTP/1.1 500 Ill\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return False
        elif self.illness.cuts and data.startswith(b"PUT"):
            return False  # S3 takes nothing of a body that is shorter than announced
        elif self.illness.halts and data.startswith(b"PUT"):
            service.sendall(data[: len(data) // 2])
            self.illness.is_waiting.set()
            self.illness.goes_on.wait(20)
            service.sendall(data[len(data) // 2 :])
        else:
            service.sendall(data)
        return True
