"""`Side`: one of the two ways that a check compares: a child process that measures in its own Python and variables."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from kvray.candidate import DeviceType
from kvray.check.side_python import start_problem
from kvray.check.side_request import PROTOCOL, SideRequest
from kvray.errors import EngineError, KvrayError, sentence_of
from kvray.files.redaction import redact
from kvray.measuring.recording import blank_record
from kvray.probes.environment import kvray_version
from kvray.record import TrialResult, TrialStatus
from kvray.search_paths import child_environment, python_command
from kvray.store.parquet import ResultsStore
from kvray.trial.log import TrialLog

_START_S = 120.0
"""In which an interpreter must have imported kvray, and then looked at its engines."""
_GRACE_S = 60.0
"""Beyond what a start or a phase of a trial may take, before a side that says nothing is given up."""
_END_S = 15.0
_LONGEST_LINE = 2**20


@dataclass(frozen=True, kw_only=True)
class SideSpec:
    """What makes a side.

    Attributes:
        name: `A`, `B` or `now`.
        python: path of the Python of another virtual environment; `None`: this one.
        variables: environment variables beside this process's own. They may be secrets: only their names are shown.
        engines: those of which candidates will be measured; they must be able to run there.
        engine_pythons: by engine, the Python in which its trials run, where that is not the side's own.
    """

    name: str
    python: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    engines: tuple[str, ...] = ()
    engine_pythons: Mapping[str, str] = field(default_factory=dict)
    device: DeviceType = DeviceType.CPU
    offline: bool = False

    @property
    def variable_names(self) -> tuple[str, ...]:
        """What results may tell of the variables."""
        return tuple(sorted(self.variables))

    @property
    def shown_name(self) -> str:
        """The name for messages, with the Python where it is another one."""
        return f"Side {self.name}" if self.python is None else f"Side {self.name} ({self.python})"


@dataclass(frozen=True, kw_only=True)
class SideFacts:
    """What a side says of itself when it starts.

    Attributes:
        python: path of its interpreter.
        kvray_source: digest of its kvray's code: two with the same version may differ.
        threads: for OpenMP programs, as they are set; `None` leaves the choice to the engine's library.
        hardware: digest of the machine and its software (see `TrialRecord.hardware`).
        engine_versions: by engine, the versions of its libraries.
    """

    python: str
    python_version: str
    kvray_version: str
    kvray_source: str
    host: str
    device_name: str
    device_uuid: str | None
    driver_version: str | None
    cpus: int
    memory_gib: int
    threads: int | None
    hardware: str
    engine_versions: Mapping[str, Mapping[str, str]]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SideFacts:
        """From a side's answer; what a newer kvray says beyond this is passed over.

        Raises:
            KeyError: it lacks something.
        """
        return cls(**{name: data[name] for name in cls.__dataclass_fields__})


class Side:
    """Use it in a `with` statement: its program ends with it, and with this process however that ends.

    Args:
        scratch: folder for its records until they are read, and for what its program prints.

    Raises:
        EngineError: on entering: the Python cannot run it, or one of the engines cannot run there.
    """

    facts: SideFacts

    def __init__(self, spec: SideSpec, scratch: Path) -> None:
        self.spec = spec
        self._store = ResultsStore(scratch / "records")
        self._log = scratch / "side.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def measure(self, request: SideRequest) -> TrialResult:
        """Measure in one fresh process. A trial that fails, and a side that dies of it, is a record with a status; the
        next trial starts the side anew."""
        started = time.monotonic()
        try:
            if self._process is None:
                self._start()
            self._ask(request.to_dict())
            answer = self._answer(within_s=request.timeout_s)
            if answer.get("answer") != "measured":
                return self._failed(request, TrialStatus.ERROR, f"{self.spec.shown_name}: {_words(answer)}", started)
            return self._taken(request)
        except _SilentError as error:
            return self._failed(request, TrialStatus.TIMEOUT, self._lost(str(error)), started)
        except (EOFError, BrokenPipeError, ConnectionError):
            return self._failed(request, TrialStatus.CRASHED, self._lost("died"), started)
        except KvrayError as error:
            return self._failed(request, TrialStatus.ERROR, sentence_of(error), started)

    def _start(self) -> None:
        spec = self.spec
        self._log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    python_command("-m", "kvray.check.side_program", python=spec.python),
                    env={**child_environment(python=spec.python), **spec.variables},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    bufsize=0,
                    start_new_session=True,  # Ctrl-C is this process's to answer
                )
        except OSError as error:
            raise EngineError(f"{spec.shown_name} cannot be started: {error.strerror}.") from error
        self._unread = b""
        try:
            self._check_protocol(self._answer(within_s=_START_S, key="kvray_side"))
            self._ask(self._opening())
            answer = self._answer(within_s=_START_S)
        except (EOFError, BrokenPipeError, ConnectionError, _SilentError) as error:
            self._end()
            raise start_problem(spec.shown_name, spec.python, spec.engines, self._last_line() or str(error)) from error
        except BaseException:
            self._end()
            raise
        if answer.get("answer") != "facts":
            self._end()
            raise EngineError(f"{spec.shown_name} cannot measure: {_words(answer)}", hint=answer.get("hint"))
        self.facts = SideFacts.from_dict(answer)

    def _opening(self) -> dict[str, Any]:
        """The names are those of `side_program._Opening`."""
        spec = self.spec
        return {
            "engines": list(spec.engines),
            "engine_pythons": dict(spec.engine_pythons),
            "device": spec.device.value,
            "offline": spec.offline,
            "records": str(self._store.files.root),
            "own_threads": "OMP_NUM_THREADS" in spec.variables,
        }

    def _check_protocol(self, greeting: Mapping[str, Any]) -> None:
        if greeting["kvray_side"] != PROTOCOL:
            raise EngineError(
                f"{self.spec.shown_name} has kvray {greeting.get('kvray')}, whose checks this kvray "
                f"{kvray_version()} cannot talk to.",
                hint="Install versions of kvray on both sides that are closer to each other.",
            )

    def _ask(self, question: Mapping[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            raise EOFError
        line = json.dumps(question).encode() + b"\n"
        while line:
            line = line[self._process.stdin.write(line) or 0 :]

    def _answer(self, *, within_s: float, key: str = "answer") -> dict[str, Any]:
        """The next answer. Each sign of life says in how many seconds the next one is due; what is no answer is passed
        over: an interpreter may print before its program has begun."""
        deadline = time.monotonic() + within_s + _GRACE_S
        while True:
            line = self._line(deadline)
            with contextlib.suppress(ValueError):
                word = json.loads(line)
                if isinstance(word, dict) and key in word:
                    if word[key] != "alive":
                        return word
                    deadline = time.monotonic() + float(word["within_s"]) + _GRACE_S

    def _line(self, deadline: float) -> bytes:
        if self._process is None or self._process.stdout is None:
            raise EOFError
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise _SilentError("said nothing for too long and was ended")
            part = os.read(descriptor, 65536)
            if not part:
                raise EOFError
            self._unread = (self._unread + part)[-_LONGEST_LINE:]
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _taken(self, request: SideRequest) -> TrialResult:
        """The trial that the side has left, which does not stay there: all that lies there is read each time."""
        found = [one for one in self._store.read(request.run_id) if one.record.trial_id == request.trial_id]
        paths = self._store.paths(request.run_id)
        self._store.delete(paths.trial_file(request.trial_id))
        self._store.delete(paths.runs_file(request.trial_id))
        if found:
            return found[0]
        raise EngineError(
            f"{self.spec.shown_name} has kvray {self.facts.kvray_version}, whose records this one cannot read."
        )

    def _failed(self, request: SideRequest, status: TrialStatus, message: str, started: float) -> TrialResult:
        record = blank_record(request.spec, status, message=self._redacted(message))
        return TrialResult(record=record.with_(wall_s=time.monotonic() - started), runs=())

    def _lost(self, how: str) -> str:
        """End what is left, and say what is known of it."""
        self._end(kill=True)
        last = self._last_line()
        return f"{self.spec.shown_name} {how}{f': {last}' if last else ''}"

    def _last_line(self) -> str | None:
        return next(reversed([self._redacted(line) for line in (TrialLog(self._log).tail() or "").splitlines()]), None)

    def _redacted(self, text: str) -> str:
        return redact(text, {**os.environ, **self.spec.variables})

    def _end(self, *, kill: bool = False) -> None:
        """Let the program end its trial and itself; by force where it does not. A reaper cleans up after it."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            if not kill:
                process.wait(_END_S)
                return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait()


class _SilentError(Exception):
    """A side that has said nothing for too long."""


def _words(answer: Mapping[str, Any]) -> str:
    return str(answer.get("message", "it does not say why"))
