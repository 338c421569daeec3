"""Which trials are stopped early: asynchronous successive halving that spares the baseline and the Pareto front."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from kvray.analysis.aggregate import Metrics
from kvray.analysis.pareto import pareto_front
from kvray.record import Role, TrialResult
from kvray.sweep.recording import rung_metrics
from kvray.sweep.slot import FIDELITY, KEEPS_LIMITS, REDUCTION_FACTOR, RESULT, UTILITY
from kvray.trial.spec import LAST_RUNG

NOISE = 0.08
"""Difference in utility (a logarithm: about 8 %) that one run each cannot establish. Between processes on a shared CPU
the standard deviation was measured as 6 % for TTFT and 1.5 % for tok/s; with weights of 0.5 and 0.35 two of them differ
by less than 0.085 nineteen times in twenty."""


class SparingHalving(AsyncHyperBandScheduler):
    """Tune's `AsyncHyperBandScheduler` (ASHA, arXiv:1810.05934) over the rungs of a trial.

    Among the trials of a rung so far, the best third goes on. Never stopped: the baseline, because every gain is
    against it; whoever is on the rung's Pareto front (TTFT, throughput, memory), because the lean are fallbacks; and
    whoever is within `NOISE` of the rung's best so far, because a rung's single run cannot tell them apart. Whoever
    keeps the profile's limits is held against the best of those that do: the others will not be ranked.
    """

    def __init__(self) -> None:
        super().__init__(
            time_attr=FIDELITY,
            metric=UTILITY,
            mode="max",
            grace_period=1,
            max_t=REDUCTION_FACTOR**LAST_RUNG + 1,
            reduction_factor=REDUCTION_FACTOR,
        )
        self._seen: defaultdict[int, list[Metrics]] = defaultdict(list)
        self._best: defaultdict[tuple[int, bool], float] = defaultdict(lambda: -math.inf)
        """By rung, of all (`False`) and of those that keep the limits (`True`)."""

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """The metric is ours, whatever Tune's config says."""
        del metric, mode, spec
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP or CONTINUE after one rung of `trial`."""
        verdict = str(super().on_trial_result(tune_controller, trial, result))
        measured: TrialResult = result[RESULT]
        metrics = rung_metrics(measured.runs, measured.record.rung)
        if metrics is None:
            return verdict
        rung = measured.record.rung or 0
        self._seen[rung].append(metrics)
        keeps_limits: bool = result[KEEPS_LIMITS]
        for peers in {False, keeps_limits}:
            self._best[rung, peers] = max(self._best[rung, peers], result[UTILITY])
        spared = (
            measured.record.role is Role.BASELINE
            or result[UTILITY] > self._best[rung, keeps_limits] - NOISE
            or pareto_front(self._seen[rung])[-1]
        )
        return str(TrialScheduler.CONTINUE) if spared else verdict
