"""A further rank of tensor parallelism as rank 0 sees it: what it is told, its process, and what it said last."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import CrashedError, ModelRequest
from kvray.engines.transformers.rank_process import start
from kvray.workload import Cell

_END_S = 3.0
"""In which a rank that is asked to end, or that has closed its connection, must have ended."""
_READ_S = 0.5
_LAST_LINES = 5


@dataclass(frozen=True, kw_only=True)
class RankTask:
    """What a rank is told when it starts.

    Attributes:
        store: file through which the ranks find each other.
        threads: intra-op threads of each rank; `None`: the library's own choice.
    """

    rank: int
    ranks: int
    store: Path
    request: ModelRequest
    candidate: Candidate
    device: DeviceType
    cells: tuple[Cell, ...]
    threads: int | None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a rank says at the end of a call.

    Attributes:
        value: what the call gave.
        failure: kind and text of the error that the call raised instead; `None`: it raised none.
    """

    value: Any = None
    failure: tuple[str, str] | None = None


class Rank:
    """One process, and what it said last."""

    def __init__(self, task: RankTask, others: Sequence[Rank]) -> None:
        self.rank = task.rank
        self.answer: Answer | None = None
        self.is_gone = False
        self.connection, theirs = Pipe()
        held = [self.connection, *(one.connection for one in others)]
        self.process, self._printed = start(theirs, threads=task.threads, foreign=held)
        theirs.close()
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._reader = threading.Thread(target=self._read, name=f"kvray-rank-{self.rank}", daemon=True)
        with contextlib.suppress(OSError):
            self.connection.send(task)

    def listen(self) -> None:
        """Pass on what it prints from now on. Before that this process has no thread beside its first."""
        self._reader.start()

    def begin(self) -> None:
        """Forget what it said before the call that begins."""
        self.answer = None
        self._lines.clear()

    def receive(self) -> None:
        """Take what it says."""
        try:
            self.answer = self.connection.recv()
        except (EOFError, OSError):
            self.is_gone = True

    def has_ended(self) -> bool:
        """Whether nothing more will come from it."""
        return self.is_gone or self.process.poll() is not None

    def death(self) -> CrashedError:
        """How it ended, in its own last words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_S)
        self._reader.join(_READ_S)
        said = f": {self._lines[-1]}" if self._lines else ""
        return CrashedError(f"rank {self.rank} {_how(self.process.poll())}{said}")

    def end(self, *, politely: bool) -> None:
        """Have it end, and wait for that."""
        if politely:
            with contextlib.suppress(OSError):
                self.connection.send(None)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_S)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(_READ_S)

    def _read(self) -> None:
        """Pass on what it prints, with its rank before each line."""
        with self._printed as printed:
            for line in printed:
                text = line.decode("utf-8", errors="replace").rstrip()
                if text:
                    self._lines.append(text)
                    sys.stderr.write(f"[rank {self.rank}] {text}\n")
                    sys.stderr.flush()


def _how(code: int | None) -> str:
    if code is None:
        return "closed its connection and did not end"
    if code < 0:
        number = -code
        return f"was killed by {signal.Signals(number).name if number in set(signal.Signals) else f'signal {number}'}"
    return f"ended with exit code {code}"
