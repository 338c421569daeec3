"""Seconds in which the search's model chooses the next candidate, while results of 64 slots arrive. Needs no Ray."""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field

import numpy as np
from landscapes import Kind, Landscape, Process, make_landscape
from output import Figure

from kvray.analysis.axis_values import number_axes
from kvray.analysis.bayesian import BayesianSampler
from kvray.candidate import Candidate
from kvray.trial.spec import SEARCH_RUNGS

CANDIDATES, SLOTS = 400, 64


def measure_proposals(quick: bool) -> dict[str, Figure]:
    """The part `proposals`: a whole search, or with `quick` its first 40 launches."""
    replay = _Replay(make_landscape(Kind(name="many", size=CANDIDATES), 0))
    replay.run(most=40 if quick else CANDIDATES)
    proposals, results = np.array(replay.proposal_s), np.array(replay.result_s)
    return {
        "proposal_s_p50": round(float(np.median(proposals)), 4),
        "proposal_s_max": round(float(proposals.max()), 4),
        "rung_result_s_p50": round(float(np.median(results)), 4),
        "rung_result_s_max": round(float(results.max()), 4),
        "proposals": len(proposals),
        "proposal_candidates": CANDIDATES,
        "proposal_slots": SLOTS,
    }


@dataclass(order=True)
class _Running:
    """A trial at its next rung, in the landscape's own seconds."""

    ends_at: float
    place: int
    process: Process = field(compare=False)
    rungs: list[int] = field(compare=False)


class _Replay:
    """A search with 64 slots on a landscape, as the driver asks and tells the sampler.

    Attributes:
        proposal_s: per launch, from the moment at which a trial has ended until its slot has the next candidate.
        result_s: per rung that was not a trial's last, what it takes to take it in and to judge the trial.
    """

    def __init__(self, landscape: Landscape) -> None:
        self._landscape = landscape
        self._index = {candidate.candidate_id: place for place, candidate in enumerate(landscape.candidates)}
        self._generator = np.random.default_rng(7)
        self._running: list[_Running] = []
        self._now = 0.0
        self._sampler = BayesianSampler(
            landscape.candidates,
            profile=landscape.profile,
            forecasts=landscape.forecasts(),
            numbers=number_axes(landscape.candidates),
            seed=0,
        )
        self.proposal_s: list[float] = []
        self.result_s: list[float] = []

    def run(self, *, most: int) -> None:
        """Launch until the sampler has nobody left, or `most` were launched."""
        launched, ended_s = 0, 0.0
        while True:
            begun = time.perf_counter()
            candidate = self._sampler.proposal() if len(self._running) < SLOTS and launched < most else None
            if candidate is not None:
                self._launch(candidate)
                self.proposal_s.append(ended_s + time.perf_counter() - begun)
                launched, ended_s = launched + 1, 0.0
            elif self._running:
                ended_s = self._next_result()
            else:
                return

    def _launch(self, candidate: Candidate) -> None:
        self._sampler.launched(candidate.candidate_id)
        place = self._index[candidate.candidate_id]
        process = Process(self._landscape, place, self._generator)
        self._wait_for(_Running(self._now, place, process, list(SEARCH_RUNGS)), process.seconds)

    def _wait_for(self, trial: _Running, before: float) -> None:
        trial.process.repeats(trial.rungs[0])
        trial.ends_at = self._now + trial.process.seconds - before
        heapq.heappush(self._running, trial)

    def _next_result(self) -> float:
        """The next rung that ends; returns the seconds that a trial's end took, 0 if the trial goes on."""
        trial = heapq.heappop(self._running)
        self._now, rung = trial.ends_at, trial.rungs.pop(0)
        key = self._landscape.candidates[trial.place].candidate_id
        metrics = trial.process.run(rung)
        begun = time.perf_counter()
        self._sampler.measured(key, rung, metrics)
        self._sampler.win_chance(key)
        if trial.rungs:
            self.result_s.append(time.perf_counter() - begun)
            self._wait_for(trial, trial.process.seconds)
            return 0.0
        self._sampler.measured(key, rung, metrics)  # the driver tells a trial's last rung, then its end with all of it
        self._sampler.ended(key, failed=False, seconds=trial.process.seconds)
        return time.perf_counter() - begun
