"""Seconds from "start trial" to "process ready with torch and transformers imported", three ways, measured in turn.

A new interpreter, a new Ray Tune actor that imports them, and kvray's fork from a server that has imported them
already. Each way ends with the same first tensor operation.

Then llama.cpp, whose process needs no torch: a new interpreter that imports the binding and starts its backend, and
kvray's fork until the same is done and the weights would be read next. Last a whole trial of the demo's model on
ci-micro, from its start to its end with quality: of the search (every cell once) and of the baseline (all repeats).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from output import parse_arguments, print_table, write_figures
from overhead import demo_model
from ray import tune
from ray.tune.search import Searcher
from ready_adapter import READY, ReadyAdapter
from ready_llama import READY_LLAMA, ReadyLlamaAdapter
from whole_trial import run_trial, trial_spec

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import ModelRequest
from kvray.engines.llama_cpp import LlamaCppAdapter
from kvray.record import Phase, Role
from kvray.sweep.quiet import quiet_ray
from kvray.sweep.session import RaySession
from kvray.trial.channel import EventReader
from kvray.trial.events import Event, PhaseStarted, TrialEnded
from kvray.trial.process import Launcher
from kvray.trial.spec import ALL_RUNGS, SEARCH_RUNGS, ReferenceSpec, TrialSpec
from kvray.tuning.local_device import detect_device
from kvray.workload import get_profile

NAMES = {"new_interpreter_s": "new interpreter", "tune_actor_s": "new Ray Tune actor", "fork_s": "kvray's fork"}
LLAMA_NAMES = {
    "llama_cpp_new_interpreter_s": "new interpreter",
    "llama_cpp_fork_s": "kvray's fork",
    "llama_cpp_trial_s": "a whole trial of the search",
    "llama_cpp_baseline_trial_s": "a whole trial of the baseline",
}


def main() -> None:
    arguments = parse_arguments(__doc__)
    repeats = 2 if arguments.quick else 5
    medians = measure_torch(repeats)
    if find_spec("llama_cpp") is not None:
        medians |= measure_llama(repeats)
    ratio = medians["new_interpreter_s"] / medians["fork_s"]
    write_figures(arguments.json, {**medians, "interpreter_over_fork": ratio}, quick=arguments.quick)


def measure_torch(repeats: int) -> dict[str, float]:
    """Medians, and their table."""
    measured: dict[str, list[float]] = {way: [] for way in NAMES}
    launcher = Launcher(ReadyAdapter())
    with (
        tempfile.TemporaryDirectory() as folder,
        quiet_ray(Path(folder) / "ray.log"),
        RaySession(address=None, scratch=Path(folder)) as ray,
    ):
        ray.nodes()
        fork_s(launcher, Path(folder))  # the first one waits for the server's own imports
        for _ in range(repeats):
            measured["new_interpreter_s"].append(new_interpreter_s(READY))
            measured["fork_s"].append(fork_s(launcher, Path(folder)))
            measured["tune_actor_s"].append(tune_actor_s(folder))
    medians = {way: statistics.median(seconds) for way, seconds in measured.items()}
    print_table(
        f"Seconds from 'start trial' to a process ready with torch and transformers, {repeats} times in turn",
        ("way", "median", "min", "max", "times kvray's fork"),
        [
            (NAMES[way], medians[way], min(seconds), max(seconds), medians[way] / medians["fork_s"])
            for way, seconds in measured.items()
        ],
    )
    return medians


def measure_llama(repeats: int) -> dict[str, float]:
    """The same of llama.cpp, and whole trials."""
    measured: dict[str, list[float]] = {way: [] for way in LLAMA_NAMES}
    ready, launcher = Launcher(ReadyLlamaAdapter()), Launcher(LlamaCppAdapter())
    search, baseline = llama_specs()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fork_s(ready, folder)  # the first ones wait for the servers' own imports, and for the reference of quality
        run_trial(launcher, search, folder)
        for _ in range(repeats):
            measured["llama_cpp_new_interpreter_s"].append(new_interpreter_s(READY_LLAMA))
            measured["llama_cpp_fork_s"].append(fork_s(ready, folder))
            for way, spec in (("llama_cpp_trial_s", search), ("llama_cpp_baseline_trial_s", baseline)):
                started = time.perf_counter()
                run_trial(launcher, spec, folder)
                measured[way].append(time.perf_counter() - started)
    print_table(
        f"llama.cpp: seconds from 'start trial' until the weights would be read, and of whole trials, {repeats} times",
        ("what", "median", "min", "max"),
        [
            (LLAMA_NAMES[way], statistics.median(seconds), min(seconds), max(seconds))
            for way, seconds in measured.items()
        ],
    )
    return {way: statistics.median(seconds) for way, seconds in measured.items()}


def llama_specs() -> tuple[TrialSpec, TrialSpec]:
    """Trials of what llama.cpp does with nothing set: as one of the search, and as the baseline."""
    adapter, request = LlamaCppAdapter(), ModelRequest(model_id=demo_model())
    model = adapter.identify_model(request, adapter.describe_model(request))
    candidate = adapter.baseline(model, detect_device(DeviceType.CPU), batch_size=1)
    reference = ReferenceSpec(candidate=candidate, model_revision=model.revision)
    search, baseline = (
        trial_spec(request.model_id, candidate, get_profile("ci-micro"), role=role, rungs=rungs, reference=reference)
        for role, rungs in ((Role.SEARCH, SEARCH_RUNGS), (Role.BASELINE, ALL_RUNGS))
    )
    return search, baseline


def new_interpreter_s(program: str) -> float:
    """A bare `python -c`."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - started


def fork_s(launcher: Launcher, folder: Path) -> float:
    """A measurement process as a slot starts it, until it has done its first tensor operation."""
    candidate = Candidate(
        engine=launcher.adapter.name, cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32
    )
    spec = TrialSpec(
        run_id="benchmark",
        trial_id="fork",
        role=Role.SEARCH,
        request=ModelRequest(model_id="none"),
        candidate=candidate,
        profile=get_profile("ci-micro"),
        device=DeviceType.CPU,
        timeout_s=60.0,
    )
    started = time.perf_counter()
    process, connection = launcher.start(spec, folder / "fork.log")
    events = EventReader(connection.fileno())
    event: Event | None = None
    while not (isinstance(event, PhaseStarted) and event.phase is Phase.LOAD):
        event = next_event(events)
    ready = time.perf_counter() - started
    while not isinstance(event, TrialEnded):
        event = next_event(events)
    process.join()
    return ready


def next_event(events: EventReader) -> Event:
    while (event := events.take()) is None:
        if not events.read():
            raise EOFError("the process ended before it was ready")
    return event


class ReadyTrainable(tune.Trainable):
    """Imports what a trial needs in the actor itself, as a trial without kvray's slots would."""

    def setup(self, config: dict[str, Any]) -> None:
        """Import and compute."""
        exec(READY)
        self._ready_s = time.time() - config["asked_at"]

    def step(self) -> dict[str, Any]:
        """Report once."""
        return {"ready_s": self._ready_s, "done": True}


class OneTrial(Searcher):
    """Suggests a single trial that knows when it was asked for."""

    def __init__(self) -> None:
        super().__init__(metric="ready_s", mode="min")
        self._asked = False

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The moment of now, then the end."""
        del trial_id
        if self._asked:
            return str(Searcher.FINISHED)
        self._asked = True
        return {"asked_at": time.time()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing to learn."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to keep."""


def tune_actor_s(folder: str) -> float:
    """A Tune trial in an actor of its own."""
    tuner = tune.Tuner(
        ReadyTrainable,
        tune_config=tune.TuneConfig(search_alg=OneTrial(), num_samples=-1),
        run_config=tune.RunConfig(
            storage_path=folder, verbose=0, checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)
        ),
    )
    return float(tuner.fit()[0].metrics["ready_s"])


if __name__ == "__main__":
    main()
