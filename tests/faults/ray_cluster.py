"""A Ray cluster as its users start one: `ray start --head`, with a home and a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from own_ray import NOT_NICE

TOKEN = "0123456789abcdef0123456789abcdef"
_STARTS_WITHIN_S = 240.0
_PORTS = range(20_000, 32_000)
"""Ray keeps those from 10002 to 19999 for its workers."""


class RayCluster:
    """One node on this machine, which asks for `TOKEN` as its home holds one. `stop` ends it.

    Args:
        with_dashboard: and so with a job server.
        python: of the environment in which Ray is started.
    """

    def __init__(self, root: Path, *, with_dashboard: bool = False, python: str = sys.executable) -> None:
        self._python = python
        self._dashboard_port = _free_port() if with_dashboard else None
        self.home = root / "home"
        token = self.home / ".ray" / "auth_token"
        token.parent.mkdir(parents=True)
        token.write_text(TOKEN)
        self._base = Path(tempfile.mkdtemp(prefix="kvray-"))  # a socket's path holds 107 bytes
        self._folder = self._base / "ray"  # where Ray looks for the latest cluster, when others run here too
        self._said = root / "said"
        self._port = _free_port()
        self._process = self._start()

    @property
    def address(self) -> str:
        """`HOST:PORT`."""
        return f"127.0.0.1:{self._port}"

    @property
    def job_server(self) -> str:
        """The address of its dashboard."""
        return f"http://127.0.0.1:{self._dashboard_port}"

    @property
    def metrics_endpoints(self) -> list[str]:
        """Where Prometheus finds the metrics of its nodes, as Ray itself tells Prometheus."""
        found = json.loads((self._folder / "prom_metrics_service_discovery.json").read_text())
        return [f"http://{target}/metrics" for one in found for target in one["targets"]]

    @property
    def environment(self) -> dict[str, str]:
        """That of the user who started it, with nothing set for Ray but where it lies."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{Path(self._python).parent}{os.pathsep}{plain['PATH']}"
        return {**plain, "HOME": str(self.home), "RAY_TMPDIR": str(self._base), "PATH": path}

    def said_of(self, job_id: str) -> str:
        """What the job has printed until now."""
        log = self._folder / "session_latest" / "logs" / f"job-driver-{job_id}.log"
        return log.read_text(encoding="utf-8") if log.exists() else ""

    def kill_and_start_anew(self) -> None:
        """As when the head's machine is switched off and on: at the same address, with the memory of nothing."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = self._start()

    def stop(self) -> None:
        """With all that it has started."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(240)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            shutil.rmtree(self._base, ignore_errors=True)

    def _start(self) -> subprocess.Popen[bytes]:
        options = (
            *("--head", "--block", "--port", str(self._port), "--num-cpus", "2", "--temp-dir", str(self._folder)),
            *("--include-dashboard", "false" if self._dashboard_port is None else "true", "--disable-usage-stats"),
            *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(self._dashboard_port or _free_port())),
            *("--dashboard-agent-listen-port", str(_free_port())),
            *("--min-worker-port", "0", "--max-worker-port", "0"),  # by default 10002 to 19999, where ours may lie too
            *("--system-config", json.dumps({"metrics_report_interval_ms": 1000, **NOT_NICE})),
        )
        with self._said.open("wb") as said:
            process = subprocess.Popen(
                [self._python, "-P", "-m", "ray.scripts.scripts", "start", *options],
                stdout=said,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.home,
                start_new_session=True,
            )
        deadline = time.monotonic() + _STARTS_WITHIN_S
        while b"Ray runtime started" not in self._said.read_bytes():
            assert process.poll() is None, self._said.read_text()
            assert time.monotonic() < deadline, self._said.read_text()
            time.sleep(0.2)
        return process


def _free_port() -> int:
    """A port below those that the kernel hands out: another program could be given one of those before Ray opens it."""
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as bound, contextlib.suppress(OSError):
            bound.bind(("127.0.0.1", port))
            return port
