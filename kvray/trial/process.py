"""`TrialProcess`: the slot's hold on one measurement process. Starts it, listens, and ends it whatever it does.

A process is forked from a server that has imported the engine's libraries (or spawned, where the engine demands it),
so it starts in hundredths of a second with clean memory. A watchdog kills its whole process group when a phase takes
too long.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

from kvray.engines.base import EngineAdapter
from kvray.record import Phase, Run, TrialStatus
from kvray.redaction import redact
from kvray.trial.child import CONTINUE, STOP, child_main
from kvray.trial.events import Event, PhaseStarted, RunFinished, RungFinished, TrialEnded
from kvray.trial.spec import TrialSpec

GRACE_S = 3.0
"""Between SIGTERM and SIGKILL."""
LOG_TAIL_CHARS = 4000
LOG_TAIL_LINES = 30
LOG_READ_BYTES = 256 * 1024


class Launcher:
    """Makes measurement processes for one engine. The fork server starts with the first of them, or with `warm`.

    Use it from one thread that lives as long as the trials: the server dies with the thread that started it.
    """

    def __init__(self, adapter: EngineAdapter) -> None:
        self.adapter = adapter
        self._context: ForkServerContext | SpawnContext
        if adapter.start_method == "forkserver":
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["kvray.trial.server_preload", "kvray.trial.child", *adapter.preload])
            self._context = context
        else:
            self._context = multiprocessing.get_context("spawn")

    def warm(self) -> None:
        """Start the fork server now, so that its imports run while something else happens."""
        if isinstance(self._context, ForkServerContext):
            from multiprocessing.forkserver import ensure_running

            ensure_running()

    def start(self, spec: TrialSpec, log: Path) -> tuple[Any, Connection]:
        """A started process and this side of its pipe."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=child_main, args=(theirs, spec, self.adapter, log), daemon=False)
        with _main_module_hidden():
            process.start()
        theirs.close()
        return process, ours


class TrialProcess:
    """One trial's process. `advance` runs one rung; `close` must be called in the end, whatever happened."""

    def __init__(self, launcher: Launcher, spec: TrialSpec, log: Path) -> None:
        self.spec = spec
        self.runs: list[Run] = []
        self.phase = Phase.START
        self._log = log
        self._process, self._connection = launcher.start(spec, log)
        self._deadline = time.monotonic() + self._allowance_s
        self._waits_for_word = False

    def advance(self) -> RungFinished | TrialEnded:
        """Let the process go on until its next rung is finished or it ends in whatever way. Collects `runs`."""
        if self._waits_for_word:
            self._say(CONTINUE)
        self._enter(self.phase)
        while True:
            event = self._next_event()
            match event:
                case RunFinished():
                    self.runs.append(event.run)
                    self._enter(self.phase)
                case PhaseStarted():
                    self._enter(event.phase)
                case RungFinished():
                    self._waits_for_word = True
                    return event
                case TrialEnded():
                    return event

    def close(self) -> None:
        """End the process and everything in its group: politely if it waits for a word, else by signals. Idempotent."""
        if self._waits_for_word:
            self._say(STOP)
            self._process.join(GRACE_S)
        self._kill_group(signal.SIGTERM)
        self._process.join(GRACE_S)
        self._kill_group(signal.SIGKILL)
        self._process.join(GRACE_S)
        self._connection.close()

    @property
    def pid(self) -> int:
        """Of the measurement process, which is also its process group."""
        return int(self._process.pid)

    def log_tail(self) -> str | None:
        """The last lines that the process printed, without secrets: they go first, or a cut would leave half of one."""
        with contextlib.suppress(OSError):
            text = redact(_end_of(self._log))[-LOG_TAIL_CHARS:]
            lines = text.splitlines()[-LOG_TAIL_LINES:]
            return "\n".join(lines).strip() or None
        return None

    def _next_event(self) -> Event:
        remaining = self._deadline - time.monotonic()
        if remaining > 0:
            wait([self._connection, self._process.sentinel], timeout=remaining)
        if self._connection.poll():
            with contextlib.suppress(EOFError, OSError):
                event: Event = self._connection.recv()
                return event
        elif self._process.is_alive():
            return self._timed_out()
        return self._died()

    def _timed_out(self) -> TrialEnded:
        self._kill_group(signal.SIGTERM)
        message = f"no end of phase {self.phase} within {self._allowance_s:g} s; killed"
        return TrialEnded(status=TrialStatus.TIMEOUT, phase=self.phase, message=message, facts=None)

    def _died(self) -> TrialEnded:
        self._process.join(GRACE_S)
        return TrialEnded(
            status=TrialStatus.CRASHED, phase=self.phase, message=_exit_reason(self._process.exitcode), facts=None
        )

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._deadline = time.monotonic() + self._allowance_s

    @property
    def _allowance_s(self) -> float:
        return self.spec.fetch_timeout_s if self.phase is Phase.PREPARE else self.spec.timeout_s

    def _say(self, word: str) -> None:
        self._waits_for_word = False
        with contextlib.suppress(BrokenPipeError, OSError):
            self._connection.send(word)

    def _kill_group(self, signal_number: signal.Signals) -> None:
        # The group outlives its leader when the trial left children behind, so it is signalled in any case.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal_number)
            return
        if self._process.is_alive():  # it was not yet the leader of a group of its own
            self._process.kill()


def _end_of(log: Path) -> str:
    """The last whole lines of a log that may be long."""
    with log.open("rb") as stream:
        skipped = max(0, stream.seek(0, os.SEEK_END) - LOG_READ_BYTES)
        stream.seek(skipped)
        text = stream.read().decode("utf-8", errors="replace")
    return text.partition("\n")[2] if skipped else text


def _exit_reason(exit_code: int | None) -> str:
    if exit_code is None:
        return "the process closed its pipe and did not end"
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        cause = " (the kernel's out-of-memory killer does this)" if name == "SIGKILL" else ""
        return f"killed by {name}{cause}"
    return f"exited with code {exit_code} without a word"


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keep multiprocessing from importing our `__main__` in the child: Ray's worker script, or a user's program."""
    main = sys.modules["__main__"]
    hidden = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    for name in hidden:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)
