"""Replays a sweep on a landscape: kvray's own trial queue, scheduler and analysis on a made-up clock."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from landscapes import Landscape, Process
from ray.tune.schedulers import TrialScheduler

from kvray.analysis import analyse
from kvray.analysis.aggregate import Metrics
from kvray.analysis.sampler import Sampler
from kvray.analysis.score import utility
from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import ModelRequest
from kvray.measuring.recording import rung_metrics
from kvray.record import Role, Run, TrialRecord, TrialResult, TrialStatus
from kvray.sweep.bounds import Bounds
from kvray.sweep.scheduler import SparingHalving
from kvray.sweep.slot import FIDELITY, KEEPS_LIMITS, MAY_KEEP_LIMITS, REDUCTION_FACTOR, RESULT, UTILITY
from kvray.sweep.trial_queue import SweepQueue
from kvray.sweep.trial_task import TrialTask
from kvray.testing.fake import FakeAdapter
from kvray.trial.spec import TrialSpec

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MakeScheduler = Callable[[SweepQueue], Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a replay came to.

    Attributes:
        seconds: of all processes, confirming ones included.
        regret: by how much the chosen candidate's true utility is short of the best one's: a logarithm.
        launched: processes of the search.
    """

    seconds: float
    share: float
    regret: float
    launched: int


@dataclass
class _Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class _Replay:
    landscape: Landscape
    generator: np.random.Generator
    index: Mapping[str, int]
    clock: _Clock = field(default_factory=_Clock)
    results: list[TrialResult] = field(default_factory=list)

    def run(self, queue: SweepQueue, scheduler: Any) -> None:
        while (order := queue.next_trial()) is not None:
            result = self._trial(order.spec, scheduler)
            self.results.append(result)
            queue.trial_finished(result)

    def _trial(self, spec: TrialSpec, scheduler: Any) -> TrialResult:
        place = self.index[spec.candidate.candidate_id]
        process = Process(self.landscape, place, self.generator)
        started, before, runs = self.clock.now, process.seconds, list[Run]()
        self.clock.now += process.seconds
        trial = SimpleNamespace(trial_id=spec.trial_id)
        scheduler.on_trial_add(None, trial)
        if not self.landscape.works[place]:
            return self._result(spec, TrialStatus.UNSUPPORTED, None, runs, started)
        for rung in spec.rungs:
            for repeat in process.repeats(rung):
                runs.append(_run(spec, rung, repeat, process.run(rung)))
            self.clock.now += process.seconds - before
            before = process.seconds
            result = self._result(spec, TrialStatus.STOPPED, rung, runs, started)
            if rung != spec.rungs[-1] and _decision(scheduler, trial, result, spec) == TrialScheduler.STOP:
                return result
        return self._result(spec, TrialStatus.OK, spec.rungs[-1], runs, started)

    def _result(
        self, spec: TrialSpec, status: TrialStatus, rung: int | None, runs: list[Run], started: float
    ) -> TrialResult:
        record = TrialRecord.of(
            spec.candidate,
            run_id=spec.run_id,
            trial_id=spec.trial_id,
            role=spec.role,
            confirm_round=spec.confirm_round,
            model_id="landscape",
            profile=spec.profile.name,
            status=status,
            rung=rung,
            wall_s=self.clock.now - started,
        )
        return TrialResult(record=record, runs=tuple(runs))


def replay(
    landscape: Landscape,
    sampler: Sampler,
    *,
    seed: int,
    confirm_rounds: int,
    stops_early: bool = True,
    repeats_apart: bool = False,
    make_scheduler: MakeScheduler = SparingHalving,
    seconds: float | None = None,
) -> Outcome:
    """One sweep; it ends after `seconds` at the latest, if given."""
    index = {candidate.candidate_id: place for place, candidate in enumerate(landscape.candidates)}
    state = _Replay(landscape, np.random.default_rng([seed, 7]), index)
    queue = SweepQueue(
        landscape.candidates,
        sampler=sampler,
        profile=landscape.profile,
        make_task=_make_task(landscape),
        bounds=Bounds(deadline_s=seconds, budget_s=seconds or 0.0, confirm_rounds=confirm_rounds),
        stops_early=stops_early,
        repeats_apart=repeats_apart,
        clock=state.clock,
    )
    state.run(queue, make_scheduler(queue))
    analysis = analyse(state.results, landscape.profile, seed=seed)
    chosen = index[analysis.ranking.winner.record.candidate_id]
    utilities = landscape.utilities
    return Outcome(
        seconds=state.clock.now,
        share=state.clock.now / landscape.exhaustive_s,
        regret=float(utilities.max() - utilities[chosen]),
        launched=sum(one.record.role is not Role.CONFIRM for one in state.results),
    )


def _make_task(landscape: Landscape) -> Callable[..., TrialTask]:
    def make(
        candidate: Candidate, *, role: Role, trial_id: str, rungs: tuple[int, ...], confirm_round: int | None = None
    ) -> TrialTask:
        spec = TrialSpec(
            run_id="replay",
            trial_id=trial_id,
            role=role,
            request=ModelRequest(model_id="landscape"),
            candidate=candidate,
            profile=landscape.profile,
            device=DeviceType.CPU,
            timeout_s=1.0,
            rungs=rungs,
            confirm_round=confirm_round,
        )
        return TrialTask(spec=spec, adapter=FakeAdapter(), scratch=Path())

    return make


def _decision(scheduler: Any, trial: Any, result: TrialResult, spec: TrialSpec) -> str:
    metrics = rung_metrics(result.runs, result.record.rung)
    if metrics is None:
        raise ValueError("a rung without runs")
    told = {
        RESULT: result,
        UTILITY: utility(metrics, spec.profile),
        KEEPS_LIMITS: True,
        MAY_KEEP_LIMITS: True,
        FIDELITY: REDUCTION_FACTOR ** (result.record.rung or 0),
        "done": False,
    }
    return str(scheduler.on_trial_result(None, trial, told))


def _run(spec: TrialSpec, rung: int, repeat: int, metrics: Metrics) -> Run:
    (cell,) = spec.profile.cells(spec.candidate.batch_size, rung=rung)
    return Run(
        run_id=spec.run_id,
        trial_id=spec.trial_id,
        candidate_id=spec.candidate.candidate_id,
        context_tokens=cell.context_tokens,
        output_tokens=cell.output_tokens,
        batch_size=cell.batch_size,
        rung=rung,
        repeat=repeat,
        ttft_ms=metrics.ttft_ms,
        itl_ms=(1000 * cell.batch_size / metrics.decode_tok_s,),
        decode_tok_s=metrics.decode_tok_s,
        peak_mib=metrics.peak_mib,
        started_at=NOW,
    )
