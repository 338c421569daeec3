"""Paired ratios: two things measured in turn under the same conditions, divided before anything is averaged.

What disturbs both sides of a pair cancels in its ratio; what disturbs one side makes one bad pair, which the median
over pairs ignores.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Sample = Mapping[str, Sequence[float]]
"""The runs of one process: values by metric."""


@dataclass(frozen=True)
class Ratio:
    """The medians of two samples divided, and the least and the greatest quotient of their runs in sequence."""

    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
        """`ours` ÷ `theirs`."""
        quotients = [one / other for one, other in zip(ours, theirs, strict=False)]
        return cls(statistics.median(ours) / statistics.median(theirs), min(quotients), max(quotients))


@dataclass(frozen=True)
class Pair:
    """Ratios of two samples, by the metrics that both have, and what was compared."""

    of: Mapping[str, str | int]
    ratios: Mapping[str, Ratio] = field(default_factory=dict)

    @classmethod
    def divide(cls, ours: Sample, theirs: Sample, **of: str | int) -> Pair:
        """`ours` ÷ `theirs`."""
        return cls(of, {metric: Ratio.of(ours[metric], theirs[metric]) for metric in ours if metric in theirs})

    def figures(self) -> dict[str, object]:
        """One entry of a benchmark's list of pairs."""
        spreads = {
            f"{metric}_{name}": round(value, 4)
            for metric, one in self.ratios.items()
            for name, value in (("ratio", one.ratio), ("low", one.low), ("high", one.high))
        }
        return {**self.of, **spreads}


def collect(runs: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """Runs of the same metrics as a sample."""
    sample: dict[str, list[float]] = {}
    for run in runs:
        for metric, value in run.items():
            sample.setdefault(metric, []).append(value)
    return sample


def middle(pairs: Sequence[Pair], metric: str) -> Ratio | None:
    """Median and quartiles of the pairs' ratios; `None` where no pair has the metric."""
    values = sorted(pair.ratios[metric].ratio for pair in pairs if metric in pair.ratios)
    if not values:
        return None
    if len(values) == 1:
        return Ratio(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Ratio(median, low, high)
