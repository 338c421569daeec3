"""Whether a Ray still lives, for Tune waits for ever for servers that have died. `sweep.session` asks, in a thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import psutil
from typing_extensions import override

_KNOCK_S = 2.0


class Liveness(Protocol):
    """Feels for a Ray's servers."""

    def death(self) -> str | None:
        """What has died, as half a sentence; `None` while all live. Asked again and again."""

    def is_silent(self) -> bool:
        """Whether a server does not answer at this moment. Ray's C++ may end a process that asks a silent server."""


class OwnServers(Liveness):
    """The servers of a private Ray that this process has started."""

    _NAMES = ("gcs_server", "raylet")

    def __init__(self) -> None:
        children = {child.name(): child for child in psutil.Process().children()}
        self._processes = {name: children[name] for name in self._NAMES if name in children}

    @override
    def death(self) -> str | None:
        dead = (name for name, process in self._processes.items() if not _is_alive(process))
        return next((f"its process {name!r} died" for name in dead), None)

    @override
    def is_silent(self) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where a server listens, and for how long it may be silent before it counts as dead.

    Attributes:
        is_same: asked when it answers again after a silence: whether it still knows this process. It raises `OSError`
            while the server cannot tell.
    """

    what: str
    host: str
    port: int
    patience_s: float
    is_same: Callable[[], bool] = lambda: True


class ClusterServers(Liveness):
    """Servers of a cluster, which may be on other machines: alive is what accepts connections. Any thread may ask."""

    def __init__(self, servers: Sequence[Server]) -> None:
        now = time.monotonic()
        self._heard_s = dict.fromkeys(servers, now)
        self._silent: set[Server] = set()
        self._renewed: Server | None = None
        self._lock = threading.Lock()

    @override
    def death(self) -> str | None:
        with self._lock:
            self._knock()
            if self._renewed is not None:
                return f"{_name(self._renewed)} was started anew and does not know this sweep"
            for server, heard_s in self._heard_s.items():
                if time.monotonic() - heard_s > server.patience_s:
                    return f"{_name(server)} does not answer any more"
            return None

    @override
    def is_silent(self) -> bool:
        with self._lock:
            self._knock()
            return bool(self._silent)

    def _knock(self) -> None:
        for server in self._heard_s:
            if self._renewed is not None or not _answers(server):
                self._silent.add(server)
                continue
            if server in self._silent:
                try:
                    is_same = server.is_same()
                except OSError:
                    continue
                if not is_same:
                    self._renewed = server
                    continue
                self._silent.remove(server)
            self._heard_s[server] = time.monotonic()


def _name(server: Server) -> str:
    return f"{server.what} at {server.host}:{server.port}"


def _answers(server: Server) -> bool:
    try:
        socket.create_connection((server.host, server.port), timeout=_KNOCK_S).close()
    except OSError:
        return False
    return True


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
