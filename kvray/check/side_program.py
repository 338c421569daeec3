"""One side of a check, as a program: `PYTHON -m kvray.check.side_program`, in the side's own Python and variables.

It reads questions from standard input and answers on standard output, JSON on one line each. A trial runs in a fresh
process; its record goes into a results folder, and the answer names it. The program ends with its standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from kvray.candidate import DeviceType
from kvray.check.side_request import PROTOCOL, SideRequest
from kvray.engines.base import EngineAdapter
from kvray.engines.interpreter import EnginePython, chosen_python, inspect_python
from kvray.engines.python_inspection import source_digest
from kvray.engines.registry import get_engine
from kvray.errors import KvrayError, sentence_of
from kvray.files.redaction import redact
from kvray.measuring.runner import TrialRunner
from kvray.measuring.surroundings import hardware_here, set_process_environment, trial_environment
from kvray.probes.cpu import openmp_threads, total_memory_mib, wished_threads
from kvray.probes.environment import capture_environment, kvray_version
from kvray.probes.gpu import visible_gpus
from kvray.record import Phase, TrialResult
from kvray.search_paths import leave_out_working_folder, python_command
from kvray.store.parquet import ResultsStore
from kvray.trial.events import Event, PhaseStarted, RunFinished, RungFinished

Tell = Callable[[Mapping[str, Any]], None]

_PACKAGE = Path(__file__).parents[1]


def main() -> None:
    """Answer until standard input ends."""
    leave_out_working_folder()
    questions, answers = _own_channels()
    signal.signal(signal.SIGTERM, _leave)
    _tell(answers, {"kvray_side": PROTOCOL, "kvray": kvray_version(), "python": platform.python_version()})
    asked: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(questions, asked), daemon=True).start()
    with contextlib.suppress(BrokenPipeError), contextlib.ExitStack() as stack:
        program: _Program | None = None
        while True:
            question = asked.get()
            try:
                if program is None:
                    program = stack.enter_context(_opened(_Opening.from_dict(json.loads(question))))
                    answer = program.facts()
                else:
                    answer = program.measured(
                        SideRequest.from_dict(json.loads(question)), lambda word: _tell(answers, word)
                    )
            except KvrayError as error:
                answer = {"answer": "refused", "message": redact(error.message), "hint": error.hint}
            except Exception as error:  # noqa: BLE001  (the boundary: the other kvray may ask for anything)
                answer = {"answer": "refused", "message": redact(f"{type(error).__name__}: {sentence_of(error)}")}
            _tell(answers, answer)


@dataclass(frozen=True, kw_only=True)
class _Opening:
    """The first question: what all trials have in common.

    Attributes:
        records: results folder for the records.
        own_threads: whether the side's variables name the threads, so that they are nobody else's wish.
    """

    engines: tuple[str, ...]
    engine_pythons: Mapping[str, str]
    device: DeviceType
    offline: bool
    records: str
    own_threads: bool

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> _Opening:
        return cls(**{**data, "engines": tuple(data["engines"]), "device": DeviceType(data["device"])})


@contextlib.contextmanager
def _opened(opening: _Opening) -> Iterator[_Program]:
    set_process_environment(
        threads=openmp_threads() if opening.own_threads else wished_threads(), offline=opening.offline
    )
    if opening.device is DeviceType.CUDA:
        _name_gpus()
    runner = TrialRunner()
    try:
        yield _Program(opening, runner)
    finally:
        runner.close()


class _Program:
    """Measures with the engines of one side."""

    def __init__(self, opening: _Opening, runner: TrialRunner) -> None:
        self._opening = opening
        self._runner = runner
        self._store = ResultsStore(opening.records)
        self._adapters: dict[str, EngineAdapter] = {}
        self._pythons: dict[str, EnginePython | None] = {}
        for name in opening.engines:
            self._runner.warm(self._adapter(name), self._pythons[name])

    def facts(self) -> dict[str, Any]:
        """What this side is."""
        environment = capture_environment(self._opening.device)
        return {
            "answer": "facts",
            "python": python_command()[0],
            "python_version": environment.python_version,
            "kvray_version": environment.kvray_version,
            "kvray_source": source_digest(_PACKAGE),
            "host": environment.host,
            "device_name": environment.device_name,
            "device_uuid": environment.device_uuid,
            "driver_version": environment.driver_version,
            "cpus": environment.cpus,
            "memory_gib": round(total_memory_mib() / 1024),
            "threads": openmp_threads(),
            "hardware": hardware_here(environment, self._libraries()),
            "engine_versions": {name: self._versions(name) for name in self._opening.engines},
        }

    def measured(self, request: SideRequest, tell: Tell) -> dict[str, Any]:
        """Measure one trial, keep it, and say where."""
        result = self._result(request, lambda event: _tell_event(event, request, tell))
        self._store.append(result)
        return {"answer": "measured", "run_id": result.record.run_id, "trial_id": result.record.trial_id}

    def _result(self, request: SideRequest, on_event: Callable[[Event], None]) -> TrialResult:
        spec, adapter = request.spec, self._adapter(request.candidate.engine)
        python = self._pythons[adapter.name]
        environment = trial_environment(spec, adapter, python)
        trial = self._runner.start(
            spec,
            adapter,
            environment=environment,
            python=python,
            hardware=hardware_here(environment, self._libraries()),
            on_event=on_event,
        )
        try:
            while isinstance(end := trial.advance(), RungFinished):
                pass
            return trial.result(end)
        finally:
            trial.close()

    def _adapter(self, name: str) -> EngineAdapter:
        """The engine of that name, once it is known to be able to run here.

        Raises:
            EngineError: it is not.
        """
        if name not in self._adapters:
            adapter = get_engine(name)
            path = chosen_python(name, self._opening.engine_pythons)
            if path is None:
                adapter.check_installed()
            self._pythons[name] = None if path is None else inspect_python(path, adapter)
            self._adapters[name] = adapter
        return self._adapters[name]

    def _versions(self, name: str) -> dict[str, str]:
        here = capture_environment(self._opening.device, libraries=self._adapters[name].libraries)
        python = self._pythons[name]
        return dict((here if python is None else python.applied_to(here)).engine_versions)

    def _libraries(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(library for one in self._adapters.values() for library in one.libraries))


def _own_channels() -> tuple[int, int]:
    """Descriptors of the questions and the answers that nothing else knows: whatever libraries print goes to standard
    error, and what they start has an empty standard input."""
    questions, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return questions, answers


def _read(questions: int, asked: queue.SimpleQueue[str]) -> None:
    """Pass on each line. When there are no more, whoever asked is gone, and the program ends whatever it does."""
    with os.fdopen(questions, "r", encoding="utf-8") as lines:
        for line in lines:
            asked.put(line)
    os.kill(os.getpid(), signal.SIGTERM)


def _leave(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is cleaned up on the way out takes its time
    raise SystemExit(0)


def _tell(answers: int, word: Mapping[str, Any]) -> None:
    line = json.dumps(word).encode() + b"\n"
    while line:
        line = line[os.write(answers, line) :]


def _tell_event(event: Event, request: SideRequest, tell: Tell) -> None:
    """A sign of life, and how long the next one may take: the trial's watchdog allows as much."""
    if isinstance(event, PhaseStarted | RunFinished):
        fetches = isinstance(event, PhaseStarted) and event.phase is Phase.PREPARE
        spec = request.spec
        tell({"answer": "alive", "within_s": spec.fetch_timeout_s if fetches else spec.timeout_s})


def _name_gpus() -> None:
    """Show trials the GPUs by number, as a slot of a sweep does: each keeps as many as its candidate asks for."""
    if "CUDA_VISIBLE_DEVICES" not in os.environ and (gpus := visible_gpus(None)):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu.index) for gpu in gpus)


if __name__ == "__main__":
    main()
