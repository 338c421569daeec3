"""`ExecCommand`: runs a command of the user's for each alert, with JSON on its standard input and in variables.

No shell is between: the line is split as a shell splits words, and nothing else in it means anything. Who wants a shell
names one: `sh -c '…'`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from kvray.check.watch.sinks.alert import Message
from kvray.check.watch.sinks.deliveries import UndeliveredError
from kvray.errors import InvalidValueError
from kvray.report import formats

LIMIT_S = 60.0
"""A command that runs longer is killed, with all it has started."""
PREFIX = "KVRAY_WATCH_"
_MOST_TOLD = 200
"""Characters of the last line that a failed command printed."""


class ExecCommand:
    """A receiver that is a command. Exit code 0 takes the alert.

    Raises:
        InvalidValueError: `line` names no program that can be run.
    """

    def __init__(self, line: str, *, limit_s: float = LIMIT_S) -> None:
        self._words = _words(line)
        self._limit_s = limit_s
        self._running: subprocess.Popen[bytes] | None = None
        self._is_abandoned = False

    @property
    def name(self) -> str:
        """`command notify-send`: arguments may be secret."""
        return f"command {Path(self._words[0]).name}"

    def deliver(self, message: Message) -> None:
        """Run the command once, and wait for its end."""
        with tempfile.TemporaryFile() as given:
            given.write(json.dumps(dict(message)).encode())
            given.seek(0)
            try:
                process = subprocess.Popen(
                    self._words,
                    stdin=given,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **variables(message)},
                    start_new_session=True,
                )
            except OSError as error:
                raise UndeliveredError(f"it cannot be started: {error.strerror}") from error
        self._running = process
        try:
            self._await(process)
        finally:
            self._running = None

    def abandon(self) -> None:
        """Kill a command that still runs."""
        self._is_abandoned = True
        if (process := self._running) is not None:
            _kill_group(process)

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        last = _LastLine(process.stdout)
        try:
            code = process.wait(self._limit_s)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            process.wait()
            limit = formats.duration(self._limit_s)
            raise UndeliveredError(f"it was killed after {limit}", is_refusal=True) from None
        if self._is_abandoned and code < 0:
            raise UndeliveredError("it was still running when the watch ended")
        if code != 0:
            raise UndeliveredError(f"{_ended(code)}{last.told()}", is_refusal=True)


def variables(message: Message, prefix: str = PREFIX) -> dict[str, str]:
    """Each value of an alert as a variable: `state` is `KVRAY_WATCH_STATE`, and the `value` of `change`
    `KVRAY_WATCH_CHANGE_VALUE`. What is null is empty."""
    found: dict[str, str] = {}
    for key, value in message.items():
        name = f"{prefix}{key.upper()}"
        if isinstance(value, Mapping):
            found |= variables(value, f"{name}_")
        else:
            found[name] = "" if value is None else formats.clean(str(value))
    return found


def _words(line: str) -> list[str]:
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise InvalidValueError(f"The command for --exec cannot be split into words: {error}.") from None
    if not words or "\0" in line:
        raise InvalidValueError("The command for --exec is empty.", hint="Give a program and its arguments.")
    if shutil.which(words[0]) is None:
        raise InvalidValueError(
            f"The command for --exec begins with {words[0]!r}, which is no program that can be run.",
            hint="No shell reads the line; for one, give: sh -c '...'.",
        )
    return words


def _ended(code: int) -> str:
    if code < 0:
        return f"it was killed by {signal.Signals(-code).name}"
    return f"it ended with exit code {code}"


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class _LastLine:
    """The end of what a process prints. It is read all the time, so that the process never waits for a reader."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        self._stream, self._tail = stream, b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def told(self) -> str:
        """`: disk full`, or nothing. Does not wait for what the process has left running."""
        self._thread.join(timeout=0.5)
        lines = formats.clean(self._tail.decode(errors="replace")).strip().splitlines()
        return f": {formats.clean_line(lines[-1])[:_MOST_TOLD]}" if lines else ""

    def _read(self) -> None:
        assert self._stream is not None
        with self._stream, contextlib.suppress(OSError, ValueError):
            while chunk := os.read(self._stream.fileno(), 65536):
                self._tail = (self._tail + chunk)[-4096:]
