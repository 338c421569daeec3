"""Two hosts on this machine, each with a network, processes, a name and a temporary folder of its own, and a link
between them that can be cut. Needs root. The kernel removes all of it with the processes that hold it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import psutil

HEAD, OTHER = "kvray-head", "kvray-other"
_SWITCH = "switch"
ADDRESSES = {HEAD: "10.213.0.1", OTHER: "10.213.0.2"}
RAY_ADDRESS = f"{ADDRESSES[HEAD]}:6379"
_HOST = (
    *("unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"),
    *("sh", "-ec"),
)
_BECOME_HOST = """
hostname "$1"; mount -t tmpfs none "$2"; mount -t tmpfs -o size=1g none /dev/shm; ip link set lo up; echo ready
read end
"""
_BECOME_SWITCH = (
    "unshare",
    "--net",
    "sh",
    "-ec",
    "ip link add switch type bridge; ip link set switch up; echo ready; read end",
)
_TOOLS = ("unshare", "nsenter", "ip", "mount", "hostname")
_STARTS_WITHIN_S = 240.0
_NODE_IS_DEAD_AFTER_S = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 3,
}
"""The default is about a minute."""


def missing() -> str | None:
    """Why there can be no two hosts here; `None` where there can."""
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if absent:
        return f"needs {', '.join(absent)}"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    try_it = "hostname x; mount -t tmpfs none /dev/shm; ip link add x type bridge"
    tried = subprocess.run([*_HOST, try_it], capture_output=True, check=False)
    return None if tried.returncode == 0 else "needs the right to make namespaces, mounts and bridges"


class TwoHosts:
    """A Ray cluster of two nodes, each with two CPUs and a logical GPU, on two hosts. `stop` ends all of it."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="kvray-")  # a socket's path holds 107 bytes
        self._holders: dict[str, subprocess.Popen[str]] = {}
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._holders[_SWITCH] = self._hold(_BECOME_SWITCH)
            for place, name in enumerate((HEAD, OTHER)):
                self._holders[name] = self._hold((*_HOST, _BECOME_HOST, "sh", name, self._folder))
                self._connect(name, f"port{place}")
            self.start_node(HEAD)
            self.start_node(OTHER)
        except BaseException:
            self.stop()
            raise

    def on(self, host: str) -> list[str]:
        """What stands before a command that is to run on `host`."""
        return ["nsenter", "-t", str(self._inner(host)), "--net", "--pid", "--mount", "--uts", "--ipc", "--"]

    def cut(self) -> None:
        """From now on what one sends to the other is lost, in silence."""
        self._on_switch("ip", "link", "set", "port1", "nomaster")

    def mend(self) -> None:
        """The link carries again."""
        self._on_switch("ip", "link", "set", "port1", "master", "switch")

    def start_node(self, host: str) -> None:
        """As a user would: `ray start` on that host."""
        head = ("--head", "--port", "6379", "--include-dashboard", "false", "--disable-usage-stats")
        options = (
            *(head if host == HEAD else ("--address", RAY_ADDRESS)),
            *(("--system-config", json.dumps(_NODE_IS_DEAD_AFTER_S)) if host == HEAD else ()),
            *("--block", "--node-ip-address", ADDRESSES[host], "--num-cpus", "2", "--num-gpus", "1"),
            *("--temp-dir", self._folder, "--object-store-memory", "100000000"),
        )
        said = tempfile.TemporaryFile()  # noqa: SIM115  (the node writes as long as it runs)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self._nodes[host] = subprocess.Popen(
            [*self.on(host), sys.executable, "-P", "-m", "ray.scripts.scripts", "start", *options],
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**environment, "HOME": self._folder},
            cwd="/",
        )
        deadline = time.monotonic() + _STARTS_WITHIN_S
        while b"Ray runtime started" not in (told := os.pread(said.fileno(), 1 << 20, 0)):
            assert self._nodes[host].poll() is None, told.decode()
            assert time.monotonic() < deadline, told.decode()
            time.sleep(0.2)

    def kill_node(self, host: str) -> None:
        """All of its Ray at once, as when the host is switched off."""
        with contextlib.suppress(psutil.NoSuchProcess):  # Ray may have ended it already
            for process in psutil.Process(self._nodes[host].pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._nodes[host].wait(30)

    def stop(self) -> None:
        """With all processes on both hosts."""
        for holder in self._holders.values():
            holder.kill()  # and unshare has told the kernel to end what is below it
            holder.wait()
        for node in self._nodes.values():
            node.kill()
            node.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self, host: str, port: str) -> None:
        namespace = str(self._inner(host))
        self._on_switch("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        self._on_switch("ip", "link", "set", port, "master", "switch", "up")
        for command in (f"ip addr add {ADDRESSES[host]}/24 dev eth0", "ip link set eth0 up"):
            subprocess.run([*self.on(host), *command.split()], check=True)

    def _on_switch(self, *command: str) -> None:
        subprocess.run(["nsenter", "-t", str(self._holders[_SWITCH].pid), "--net", "--", *command], check=True)

    def _inner(self, host: str) -> int:
        """The host's first process."""
        (child,) = psutil.Process(self._holders[host].pid).children()
        return int(child.pid)

    @staticmethod
    def _hold(command: tuple[str, ...]) -> subprocess.Popen[str]:
        """Start what ends when this process does: its standard input is closed then."""
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        return holder
