"""Cleans up after a process that has ended, SIGKILL included: a program of its own that sleeps until the other's end of
a pipe closes.

`trial_reaper` and `sweep.driver_reaper` say what there is to clean up. The program imports the standard library and
what cleans up, so it costs a few MiB. It is no child of the process that it outlives, ignores the signals that are
meant for it, and is replaced if it was killed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

Told = Sequence[Sequence[Any]]
"""What a reaper was told, in this order: strings and numbers."""


class Reaper:
    """The side of the process that may be killed. The program starts when it is first told something.

    Args:
        clean_up: called in the program when this process has ended. It is a function of a module that imports nothing
            but the standard library and this module.
        standard_error: descriptor to which `clean_up` may write; by default what it writes is lost.
    """

    def __init__(self, clean_up: Callable[[Told], None], *, standard_error: int | None = None) -> None:
        self._clean_up = (clean_up.__module__, clean_up.__name__)
        self._standard_error = subprocess.DEVNULL if standard_error is None else standard_error
        self._pipe: IO[bytes] | None = None
        self._told: dict[bytes, None] = {}

    def tell(self, *words: str | int | None) -> None:
        """Add the line `words` to what it knows. A program that was killed is replaced, and told everything anew."""
        line = json.dumps(words).encode() + b"\n"
        self._told[line] = None
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                self._pipe.write(line)
                return
        self._start()

    def close(self) -> None:
        """Let it clean up now, as if this process had ended."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _start(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, *self._clean_up],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._standard_error,
            cwd="/",
            bufsize=0,
            start_new_session=True,  # Ctrl-C and a closed terminal are meant for the process that started it
        )
        if process.stdin is None:
            raise RuntimeError("a pipe was asked for")
        self._pipe = process.stdin
        with contextlib.suppress(OSError):
            self._pipe.write(b"".join(self._told))
        process.wait()  # it leaves a process of its own: Ray kills the children of a worker or job that it ends


def watch(clean_up: Callable[[Told], None]) -> None:
    """Take note of what standard input tells; when it ends, so has the process that told it."""
    told = [json.loads(line) for line in sys.stdin.buffer if line.endswith(b"\n")]
    if told:
        clean_up(told)


def _main(module: str, function: str) -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    sys.path.append(str(Path(__file__).parents[2]))  # kvray's; the standard library is found first
    clean_up = getattr(importlib.import_module(module), function)
    if os.fork() == 0:
        watch(clean_up)


if __name__ == "__main__":
    _main(*sys.argv[1:])
