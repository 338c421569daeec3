"""The ways of measuring a candidate that `fidelity.py` compares, each in a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pairs import Sample, collect
from whole_trial import run_trial, trial_spec

from kvray.candidate import Candidate
from kvray.engines.registry import get_engine
from kvray.trial.process import Launcher
from kvray.workload import Cell, WorkloadProfile

Samples = Mapping[Cell, Sample]
"""What one process measured: TTFT and ITL in ms, decode in tok/s."""
Harness = Callable[[Candidate], Samples]


class Sides(ABC):
    """One engine's. A process ends before the next one starts.

    Attributes:
        engine: its name.
        plain_name: what the plain side is, in tables.
        tool_name: the public tool, with its version where it is known; `None`: it takes no part.
        threads: with which all sides compute.
    """

    engine: ClassVar[str]
    plain_name: ClassVar[str]

    def __init__(
        self,
        model: str,
        *,
        profile: WorkloadProfile,
        scratch: Path,
        python: str | None = None,
        tool_name: str | None = None,
    ) -> None:
        self.tool_name = tool_name
        self.threads: int | None = None
        self._model = model
        self._profile = profile
        self._cells = profile.cells(1, rung=2)
        self._scratch = scratch
        self._launcher = Launcher(get_engine(self.engine), python=python)
        self._disturbed: list[bool] = []

    @abstractmethod
    def candidates(self) -> list[Candidate]:
        """What is compared. `--quick` takes the first and the last."""

    @abstractmethod
    def plain(self, candidate: Candidate) -> Samples:
        """The engine alone, in a program that knows nothing of kvray."""

    @abstractmethod
    def tool(self, candidate: Candidate) -> Samples:
        """The public tool."""

    def tool_takes(self, candidate: Candidate) -> bool:
        """Whether the public tool can express `candidate`."""
        del candidate
        return self.tool_name is not None

    def applicable(self, candidate: Candidate) -> dict[str, Harness]:
        """The harnesses for `candidate`, kvray's beside each of the others."""
        sides: dict[str, Harness] = {"kvray": self.kvray, "plain": self.plain}
        return {"tool": self.tool, **sides} if self.tool_takes(candidate) else sides

    @property
    def disturbed_share(self) -> float:
        """Share of kvray's runs that were disturbed."""
        return sum(self._disturbed) / len(self._disturbed)

    def kvray(self, candidate: Candidate) -> Samples:
        """A trial, without Ray around it."""
        runs, facts = run_trial(self._launcher, trial_spec(self._model, candidate, self._profile), self._scratch)
        self._check_threads(facts.observed.threads)
        self._disturbed += [run.disturbed for run in runs]
        return {
            cell: {
                "ttft": [run.ttft_ms for run in runs if run.cell == cell],
                "decode": [run.decode_tok_s for run in runs if run.cell == cell],
                "itl": [statistics.median(run.itl_ms) for run in runs if run.cell == cell],
            }
            for cell in self._cells
        }

    def in_process(self, python: str, script: str, **asked: Any) -> Samples:
        """What `script` of this folder measures of the model."""
        order = json.dumps({"model": self._model, "repeats": self._profile.repeats, **asked})
        lines = self.output([python, str(Path(__file__).with_name(script)), order]).splitlines()
        said = json.loads(next(line for line in reversed(lines) if line.startswith("{")))  # others are a library's
        self._check_threads(said["threads"])
        by_cell: dict[Cell, list[dict[str, float]]] = {}
        for run in said["runs"]:
            context, tokens = run.pop("cell")
            by_cell.setdefault(Cell(context, tokens, 1), []).append(run)
        return {cell: collect(runs) for cell, runs in by_cell.items()}

    def output(self, command: Sequence[str]) -> str:
        """What `command` prints. The benchmark ends where it fails."""
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
        return done.stdout

    def _check_threads(self, threads: int | None) -> None:
        """An engine with processes of its own tells none."""
        self.threads = self.threads or threads
        if threads is not None and threads != self.threads:
            sys.exit(f"not comparable: one side computes with {self.threads} threads, another one with {threads}")
