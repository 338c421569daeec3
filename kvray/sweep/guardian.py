"""Cleans up after a driver that was killed: a process of its own, started by `sweep.session` before a private Ray.

Of a killed driver's Ray, two agents live on for a minute (Ray 2.60 waits so long for a server that is gone), and its
folders for ever. This process sleeps until the driver's end of a pipe closes, however that came about. It imports the
standard library only and runs as a script, so that it costs a few MiB.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

GRACE_S = 2.0
"""For Ray's own way out. What dies by itself does so within 1.6 s."""
_POLL_S = 0.1
_DISMISSED = b"\n"


class Guardian:
    """The driver's side: start it before Ray, `dismiss` it when Ray is gone. With a killed driver go `folder` and the
    folder of its Ray's session."""

    def __init__(self, folder: Path) -> None:
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C and a closed terminal are meant for the driver
        )

    def remove_session(self, folder: Path) -> None:
        """Where the driver's Ray has its logs and sockets."""
        pipe: IO[bytes] | None = self._process.stdin
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.write(os.fsencode(folder) + b"\0")
                pipe.flush()

    def dismiss(self) -> None:
        """Nothing is left to clean up."""
        pipe: IO[bytes] | None = self._process.stdin
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.write(_DISMISSED)
                pipe.close()
        self._process.wait()


def ray_processes_of(driver: int) -> dict[int, Path]:
    """Processes that write logs of the Ray that the process `driver` started, each with the folder of its session. The
    folder's name ends in that number."""
    found = {int(entry.name): _session_of(entry, driver) for entry in Path("/proc").glob("[0-9]*")}
    return {pid: session for pid, session in found.items() if session is not None}


def _session_of(process: Path, driver: int) -> Path | None:
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        sessions = (_session_of_log(descriptor, driver) for descriptor in (process / "fd").iterdir())
        return next(filter(None, sessions), None)
    return None


def _session_of_log(descriptor: Path, driver: int) -> Path | None:
    with contextlib.suppress(OSError):  # closed meanwhile
        log = descriptor.readlink()
        is_written = bool(descriptor.lstat().st_mode & stat.S_IWUSR)  # who reads them is a person
        folders = (one for one in log.parents if one.name.startswith("session_") and one.name.endswith(f"_{driver}"))
        return next(folders, None) if is_written else None
    return None


def remove_folders(folders: Iterable[Path], *, within_s: float) -> None:
    """Delete them although processes that are about to end still write there."""
    deadline = time.monotonic() + within_s
    while left := [folder for folder in folders if folder.is_dir()]:
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > deadline:
            return
        time.sleep(_POLL_S)


def watch(driver: int, folder: Path) -> None:
    """Wait until standard input ends. A driver that was killed has not said that all is well: then clean up."""
    said = sys.stdin.buffer.read()
    if said.endswith(_DISMISSED):
        return
    # Where it was killed before Ray had told its session's folder.
    sessions = {*map(Path, map(os.fsdecode, said.split(b"\0")[:-1])), *ray_processes_of(driver).values()}
    time.sleep(GRACE_S)
    for pid, session in ray_processes_of(driver).items():
        sessions.add(session)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    remove_folders([folder, *sessions], within_s=GRACE_S)


if __name__ == "__main__":
    watch(int(sys.argv[1]), Path(sys.argv[2]))
