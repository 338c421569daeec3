"""`TrialProcess`: the slot's hold on one measurement process. Starts it, listens, and ends it whatever it does.

A process is forked from a server that has imported the engine's libraries (or spawned, where the engine demands it),
so it starts in hundredths of a second with clean memory. A watchdog kills its whole process group when a phase takes
too long or the machine's memory runs out. What a trial leaves behind goes with it.

Only this one process is watched. If a process that the engine started dies (a server, a rank), the engine must raise an
error or give up (`engines.failures`); otherwise the trial ends at the timeout of its phase.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.resource_tracker import ensure_running as ensure_resource_tracker
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

from kvray.engines.base import EngineAdapter
from kvray.record import Phase, Run, TrialStatus
from kvray.trial.channel import BrokenChannelError, EventReader
from kvray.trial.child import CONTINUE, STOP, child_main
from kvray.trial.events import Event, PhaseStarted, RunFinished, RungFinished, TrialEnded
from kvray.trial.fork_server import EngineServer
from kvray.trial.imports import PRELOAD
from kvray.trial.leftovers import ProcessTree, remove_folder, remove_stale_locks
from kvray.trial.log import TrialLog, scratch_of
from kvray.trial.memory_watch import MemoryWatch
from kvray.trial.other_python import UNKNOWN_EXIT_CODE, OtherPython
from kvray.trial.shared_memory import SharedMemoryWatch
from kvray.trial.spec import TrialSpec
from kvray.trial.trial_reaper import trial_reaper

GRACE_S = 3.0
"""Between SIGTERM and SIGKILL."""
LOOK_INTERVAL_S = 0.5
"""Between two looks at memory, log and shared memory."""
_POLL_S = 0.05
_DEATH_S = 0.5
"""In which a process that was killed is seen to be dead."""


class Launcher:
    """Makes measurement processes for one engine. The fork server starts with the first of them, or with `warm`.

    Use it from one thread that lives as long as the trials: the server dies with the thread that started it.

    Args:
        python: path of another environment's Python, in which they run; by default this one.
    """

    def __init__(self, adapter: EngineAdapter, *, python: str | None = None) -> None:
        self.adapter = adapter
        self.tree = ProcessTree()
        self.reaper = trial_reaper()
        self._elsewhere = OtherPython(python, keeps_server=adapter.start_method == "forkserver") if python else None
        self._context: ForkServerContext | SpawnContext = multiprocessing.get_context("spawn")
        self._server: EngineServer | None = None
        if adapter.start_method == "forkserver":
            self._context, self._server = multiprocessing.get_context("forkserver"), EngineServer()

    def warm(self) -> None:
        """Start the fork server now, so that its imports run while something else happens."""
        if self._elsewhere is not None:
            with self._starting():
                self._elsewhere.warm()
        elif self._server is not None:
            with self._starting():
                self._server.ensure_running()

    def start(self, spec: TrialSpec, log: Path) -> tuple[Any, Connection]:
        """A started process and this side of its pipe."""
        remove_stale_locks(self.adapter.build_locks())
        arguments = (spec, self.adapter, log, scratch_of(log))
        self.reaper.remove_folder(scratch_of(log))
        if self._elsewhere is not None:
            with self._starting():
                return self._elsewhere.start(*arguments)
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=child_main, args=(theirs, *arguments), daemon=False)
        served = contextlib.nullcontext() if self._server is None else self._server.used()
        with _main_module_hidden(), self._starting(), served:
            process.start()
        theirs.close()
        return process, ours

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        """What starts meanwhile ends with this process. A fork server imports what measurement processes of this engine
        need."""
        # It outlives all of them, unmarked, and removes the shared memory that they have told it of.
        ensure_resource_tracker()
        self.reaper.end_processes(self.tree.mark)
        self.reaper.remove_folder(Path(get_temp_dir()))  # of the fork server's socket
        preload = ",".join(("kvray.trial.child", *self.adapter.preload))
        ours = {name: value for name, value in self.adapter.process_environment().items() if name not in os.environ}
        os.environ.update({PRELOAD: preload, **ours})
        try:
            with self.tree.marked():
                yield
        finally:
            for name in (PRELOAD, *ours):
                del os.environ[name]


class TrialProcess:
    """One trial's process. `advance` runs one rung; `close` must be called in the end, whatever happened.

    Args:
        log: file for what it prints. Its temporary files go into a folder beside it, which `close` removes.
        memory: what watches the host's memory; `None` for the default.
        on_event: hears of everything that the process says.

    Attributes:
        pids: the measurement process and, once it is closed, all that were alive below it before.
    """

    def __init__(
        self,
        launcher: Launcher,
        spec: TrialSpec,
        log: Path,
        *,
        memory: MemoryWatch | None = None,
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self.spec = spec
        self.runs: list[Run] = []
        self.phase = Phase.START
        self._launcher = launcher
        self._log = TrialLog(log)
        self._scratch = scratch_of(log)
        self._memory = memory or MemoryWatch()
        self._on_event = on_event
        self._shared_memory = SharedMemoryWatch(heir=launcher.reaper)
        self._process, self._connection = launcher.start(spec, log)
        launcher.tree.add(self.pid)
        self.pids: tuple[int, ...] = (self.pid,)
        self._events = EventReader(self._connection.fileno())
        self._deadline = time.monotonic() + self._allowance_s
        self._next_look = time.monotonic() + LOOK_INTERVAL_S
        self._waits_for_word = False
        self._is_closed = False

    def advance(self) -> RungFinished | TrialEnded:
        """Let the process go on until its next rung is finished or it ends in whatever way. Collects `runs`."""
        if self._waits_for_word:
            self._say(CONTINUE)
        self._enter(self.phase)
        while True:
            event = self._next_event()
            self._on_event(event)
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
        """End the process and everything that it has started or left: politely if it waits for a word, else by signals.
        Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._waits_for_word:
            self._say(STOP)
            self._await_end()
        self._look_at_shared_memory()
        self.pids = tuple(dict.fromkeys((*self.pids, *self._members())))
        self._kill_group(signal.SIGTERM)
        self._await_end()
        self._kill_group(signal.SIGKILL)
        self._await_end()
        self._launcher.tree.remove(self.pid)
        self._connection.close()
        self._shared_memory.clean()
        self._log.bound()
        remove_folder(self._scratch)
        remove_stale_locks(self._launcher.adapter.build_locks())

    @property
    def pid(self) -> int:
        """Id of the measurement process, which is also its process group."""
        return int(self._process.pid)

    def log_tail(self) -> str | None:
        """The last lines that the process printed."""
        return self._log.tail()

    def _next_event(self) -> Event:
        """What the process says next, or the trial's end if it will say nothing more."""
        try:
            while True:
                event = self._events.take()
                if event is None:
                    event = self._listen()
                if event is not None:
                    return event
        except BrokenChannelError as error:
            return self._ended(TrialStatus.CRASHED, f"{error}; killed")

    def _listen(self) -> TrialEnded | None:
        """Wait until the process says something, ends, or is due to be looked at. Returns the trial's end if it has
        come; what was said is then in `_events`."""
        now = time.monotonic()
        if now >= self._deadline:
            return self._timed_out()
        if now >= self._next_look:
            return self._look()
        timeout_s = min(self._deadline, self._next_look) - now
        ready = wait([self._connection, self._process.sentinel], timeout=timeout_s)
        # A process that has ended may have left words in the pipe: they come before its end.
        has_words = self._connection in ready or (ready and self._connection.poll())
        if has_words:
            return None if self._events.read() else self._died()
        has_ended = ready or not self._process.is_alive()
        return self._died() if has_ended else None

    def _look(self) -> TrialEnded | None:
        """What cannot wait until the trial says something."""
        self._next_look = time.monotonic() + LOOK_INTERVAL_S
        self._log.bound()
        self._look_at_shared_memory()
        shortage = self._memory.shortage(self._members)
        if shortage is None:
            return None
        self._kill_group(signal.SIGKILL)
        return self._ended(TrialStatus.OOM, shortage)

    def _look_at_shared_memory(self) -> None:
        self._shared_memory.look(self._members)

    def _members(self) -> Sequence[int]:
        return self._launcher.tree.members(self.pid)

    def _timed_out(self) -> TrialEnded:
        self._kill_group(signal.SIGTERM)
        return self._ended(TrialStatus.TIMEOUT, f"no end of phase {self.phase} within {self._allowance_s:g} s; killed")

    def _died(self) -> TrialEnded:
        self._await_end()
        exit_code = self._process.exitcode
        if exit_code == UNKNOWN_EXIT_CODE and self._launcher.tree.has_lost_its_server(within_s=_DEATH_S):
            return self._ended(TrialStatus.CRASHED, "killed together with the process that forked it, which is dead")
        if exit_code != -signal.SIGKILL:
            return self._ended(TrialStatus.CRASHED, self._log.last_words() or _exit_reason(exit_code))
        by_kernel = self._memory.kernel_killed()
        if by_kernel:
            return self._ended(TrialStatus.OOM, "killed by the kernel's out-of-memory killer")
        cause = " (the kernel's out-of-memory killer does this)" if by_kernel is None else ""
        return self._ended(TrialStatus.CRASHED, f"killed by SIGKILL{cause}")

    def _ended(self, status: TrialStatus, message: str) -> TrialEnded:
        return TrialEnded(status=status, phase=self.phase, message=message, facts=None)

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

    def _await_end(self) -> None:
        """At most `GRACE_S`. What a spawned process leaves behind keeps its sentinel open, so `join` is not enough."""
        deadline = time.monotonic() + GRACE_S
        while self._process.is_alive() and time.monotonic() < deadline:
            wait([self._process.sentinel], timeout=_POLL_S)

    def _kill_group(self, signal_number: signal.Signals) -> None:
        # The group outlives its leader when the trial left children behind, so it is signalled in any case.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal_number)
            return
        if self._process.is_alive():  # it was not yet the leader of a group of its own
            self._process.kill()


def _exit_reason(exit_code: int | None) -> str:
    if exit_code is None:
        return "the process closed its pipe and did not end"
    if exit_code < 0:
        number = -exit_code
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return f"killed by {name}"
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
