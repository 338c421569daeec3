"""Seconds from "start trial" to "process ready with torch and transformers imported", three ways, measured in turn.

A new interpreter, a new Ray Tune actor that imports them, and kvray's fork from a server that has imported them
already. Each way ends with the same first tensor operation.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from output import parse_arguments, print_table, write_figures
from ray import tune
from ray.tune.search import Searcher
from ready_adapter import READY, ReadyAdapter

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import ModelRequest
from kvray.record import Phase, Role
from kvray.sweep.quiet import quiet_ray
from kvray.sweep.session import RaySession
from kvray.trial.channel import EventReader
from kvray.trial.events import Event, PhaseStarted, TrialEnded
from kvray.trial.process import Launcher
from kvray.trial.spec import TrialSpec
from kvray.workload import get_profile

NAMES = {"new_interpreter_s": "new interpreter", "tune_actor_s": "new Ray Tune actor", "fork_s": "kvray's fork"}


def main() -> None:
    arguments = parse_arguments(__doc__)
    repeats = 2 if arguments.quick else 5
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
            measured["new_interpreter_s"].append(new_interpreter_s())
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
    ratio = medians["new_interpreter_s"] / medians["fork_s"]
    write_figures(arguments.json, {**medians, "interpreter_over_fork": ratio}, quick=arguments.quick)


def new_interpreter_s() -> float:
    """A bare `python -c`."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", READY], check=True)
    return time.perf_counter() - started


def fork_s(launcher: Launcher, folder: Path) -> float:
    """A measurement process as a slot starts it, until it has done its first tensor operation."""
    candidate = Candidate(
        engine=ReadyAdapter.name, cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32
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
