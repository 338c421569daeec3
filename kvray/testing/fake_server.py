"""The server process in which a fake model lives on request: it holds memory, and computes while it is told to."""

from __future__ import annotations

import contextlib
import subprocess
import sys

from kvray.search_paths import child_environment

HELD_MIB = 96
"""What it holds beside Python."""
_SERVER = """
import sys, time
held = bytearray(b"x") * (int(sys.argv[1]) << 20)
print(flush=True)
for line in sys.stdin:
    end = time.perf_counter() + float(line)
    while time.perf_counter() < end:
        pass
    print(flush=True)
"""


class FakeServer:
    """Started when it is made. `pid` is its process id."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SERVER, str(HELD_MIB)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(),
            start_new_session=True,  # as servers do: it is not in the trial's process group
        )
        self.pid = self._process.pid
        self.wait()

    def compute(self, seconds: float) -> None:
        """Let it keep a CPU busy for so long; returns at once."""
        if self._process.stdin is not None:
            self._process.stdin.write(f"{seconds}\n".encode())
            self._process.stdin.flush()

    def wait(self) -> None:
        """Until it has done what it was told."""
        if self._process.stdout is not None:
            self._process.stdout.readline()

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.communicate()
