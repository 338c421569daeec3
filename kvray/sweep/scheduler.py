"""Which trials are stopped early: asynchronous successive halving that spares the baseline and the Pareto front."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from kvray.analysis.aggregate import Metrics
from kvray.analysis.pareto import pareto_front
from kvray.record import Role, TrialResult
from kvray.sweep.recording import rung_metrics
from kvray.sweep.slot import FIDELITY, REDUCTION_FACTOR, RESULT, UTILITY
from kvray.trial.spec import LAST_RUNG


class SparingHalving(AsyncHyperBandScheduler):
    """Tune's `AsyncHyperBandScheduler` (ASHA, arXiv:1810.05934) over the rungs of a trial.

    Among the trials of a rung so far, the best third goes on. Never stopped: the baseline, because every gain is
    against it, and whoever is on the rung's Pareto front (TTFT, throughput, memory), because the lean are fallbacks.
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
        others = self._seen[measured.record.rung or 0]
        others.append(metrics)
        spared = measured.record.role is Role.BASELINE or pareto_front(others)[-1]
        return str(TrialScheduler.CONTINUE) if spared else verdict
