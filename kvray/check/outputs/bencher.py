"""A check in Bencher's Metric Format, for `bencher run --adapter json --file FILE`."""

from __future__ import annotations

import json

from kvray.analysis.comparison import ComparedMetric
from kvray.check.outputs.measured import Measured, measured_now, significant
from kvray.check.result import CheckResult

MEASURES = {
    ComparedMetric.TTFT: "ttft-ms",
    ComparedMetric.DECODE: "decode-tok-s",
    ComparedMetric.MEMORY: "peak-mib",
}
"""Slugs; Bencher makes a measure that it does not know yet."""


def render_bencher(result: CheckResult) -> str:
    """A JSON object: for each candidate, its metrics as measured now, each with its 95 % bounds."""
    benchmarks: dict[str, dict[str, dict[str, float]]] = {}
    for one in measured_now(result):
        benchmarks.setdefault(one.benchmark, {})[MEASURES[one.metric]] = _metric(one)
    return json.dumps(benchmarks, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _metric(one: Measured) -> dict[str, float]:
    bounds = {} if one.bounds is None else {"lower_value": one.bounds[0], "upper_value": one.bounds[1]}
    return {"value": significant(one.value), **{name: significant(bound) for name, bound in bounds.items()}}
