"""What was measured now, metric by metric, for programs that keep their own history."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvray.analysis.comparison import ComparedMetric, Verdict
from kvray.check.outputs import wording
from kvray.check.result import CheckResult, MetricVerdict


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One metric of one candidate, in the metric's unit.

    Attributes:
        benchmark: the same from run to run, so that a history can be kept by it.
        bounds: 95 %, from the interval of the change; `None` where there is none.
    """

    benchmark: str
    metric: ComparedMetric
    verdict: Verdict | None
    value: float
    bounds: tuple[float, float] | None

    def inverted(self, numerator: float) -> Measured:
        """`numerator` / value: 1000 makes milliseconds per token of tokens per second."""
        bounds = None if self.bounds is None else (numerator / self.bounds[1], numerator / self.bounds[0])
        return Measured(
            benchmark=self.benchmark,
            metric=self.metric,
            verdict=self.verdict,
            value=numerator / self.value,
            bounds=bounds,
        )


def measured_now(result: CheckResult) -> Iterator[Measured]:
    """Every metric that was measured now. One that was not is left out, because the formats have no missing value."""
    for candidate in result.candidates:
        names = (result.shown_model, result.profile.name, wording.name_of(candidate))
        for one in candidate.metrics:
            if one.now is not None and one.now > 0:
                yield Measured(
                    benchmark=wording.outside(" / ".join(names)),
                    metric=one.metric,
                    verdict=one.verdict,
                    value=one.now,
                    bounds=_bounds(one),
                )


def significant(value: float) -> float:
    """`value` with six digits, which is more than any measurement has."""
    return float(f"{value:.6g}")


def _bounds(metric: MetricVerdict) -> tuple[float, float] | None:
    if metric.before is None or metric.change is None:
        return None
    low, high = (metric.before * (1 + end) for end in (metric.change.low, metric.change.high))
    return (low, high) if 0 < low <= high else None
