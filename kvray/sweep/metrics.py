"""Prometheus metrics of sweeps: what they are called, and how they get to the metrics endpoint of this node's Ray."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kvray.sweep.session import RaySession

RAYS_PREFIX = "ray_"
"""Ray puts it before every name."""
SWEEP_LABELS = ("run_id", "model", "engine", "profile", "gpu_type")
"""Labels that every metric has. Where a figure belongs to a sweep of several engines, `engine` has all their names;
`gpu_type` is empty where Ray knows none."""


class Metric(enum.StrEnum):
    """A metric that kvray exports. All are gauges, which vanish from the endpoint some time after the sweep."""

    RUNNING = "kvray_sweep_running"
    TRIALS = "kvray_trials"
    CANDIDATES = "kvray_candidates"
    TRIED = "kvray_candidates_tried"
    BEST_GAIN = "kvray_best_gain_ratio"
    BEST_TTFT = "kvray_best_ttft_speedup_ratio"
    BEST_DECODE = "kvray_best_decode_speedup_ratio"
    GPU_SECONDS = "kvray_gpu_seconds"
    TRIAL_SECONDS = "kvray_trial_seconds"
    PASSED = "kvray_passed_seconds"
    LEFT = "kvray_left_seconds"

    @property
    def exported_name(self) -> str:
        """As Prometheus sees it."""
        return f"{RAYS_PREFIX}{self.value}"

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its labels."""
        return (*SWEEP_LABELS, *_FURTHER_LABELS.get(self, ()))

    @property
    def help(self) -> str:
        """What it tells, in one sentence."""
        return _HELP[self]


_FURTHER_LABELS = {Metric.TRIALS: ("status",), Metric.LEFT: ("bound",)}
_HELP = {
    Metric.RUNNING: "1 while the sweep measures, 0 once it has ended.",
    Metric.TRIALS: "Trials that were launched, by status: running, lost (waits to run again), or how it ended.",
    Metric.CANDIDATES: "Candidates of the sweep.",
    Metric.TRIED: "Candidates that were tried.",
    Metric.BEST_GAIN: "The best candidate over the baseline, by the profile's weights: 1.2 is 20 % better.",
    Metric.BEST_TTFT: "The baseline's time to first token divided by the best candidate's.",
    Metric.BEST_DECODE: "The best candidate's tokens per second divided by the baseline's.",
    Metric.GPU_SECONDS: "Seconds that ended trials held GPUs, times the GPUs of each; 0 on a CPU.",
    Metric.TRIAL_SECONDS: "Seconds that ended trials took.",
    Metric.PASSED: "Seconds since the sweep's first trial could start.",
    Metric.LEFT: "Seconds until the sweep ends, roughly: the least and the most.",
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The value of one metric now.

    Attributes:
        labels: those that differ from the sweep's own, and those that the metric has besides.
    """

    metric: Metric
    value: float
    labels: Mapping[str, str]


class SweepMetrics:
    """The metrics of one sweep. Make it, and use it, only while Ray is connected.

    Args:
        labels: a value for each of `SWEEP_LABELS`.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        from ray.util.metrics import Gauge

        self._labels = dict(labels)
        self._gauges: dict[Metric, Any] = {
            one: Gauge(one.value, description=one.help, tag_keys=one.labels) for one in Metric
        }

    def write(self, samples: Iterable[Sample]) -> None:
        """Hand the samples to Ray, which sends them to its node's metrics agent every few seconds."""
        for one in samples:
            self._gauges[one.metric].set(one.value, tags={**self._labels, **one.labels})


def exports_metrics(ray_session: RaySession) -> bool:
    """Whether anybody can read metrics: the node that this process is attached to has a metrics endpoint. A private
    Ray, which ends with the sweep, is not asked."""
    if ray_session.is_private:
        return False
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == node_id and node.get("MetricsExportPort", 0) > 0 for node in ray.nodes())
