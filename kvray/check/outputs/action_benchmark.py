"""A check as input of github-action-benchmark (`tool: customSmallerIsBetter`), which draws it over the commits.

All values there must be better when smaller, so decode throughput is written as milliseconds per token.
"""

from __future__ import annotations

import json
from typing import Any

from kvray.analysis.comparison import ComparedMetric
from kvray.check.outputs import wording
from kvray.check.outputs.measured import Measured, measured_now, significant
from kvray.check.result import CheckResult

_NAMES = {
    ComparedMetric.TTFT: ("time to first token", "ms"),
    ComparedMetric.DECODE: ("time per token", "ms/token"),
    ComparedMetric.MEMORY: ("peak memory", "MiB"),
}


def render_action_benchmark(result: CheckResult) -> str:
    """A JSON array with an entry for each candidate and metric that was measured now."""
    entries = [_entry(result, one) for one in measured_now(result)]
    return json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _entry(result: CheckResult, one: Measured) -> dict[str, Any]:
    name, unit = _NAMES[one.metric]
    smaller = one.inverted(1000) if one.metric is ComparedMetric.DECODE else one
    bounds = smaller.bounds
    return {
        "name": f"{one.benchmark}: {name}",
        "unit": unit,
        "value": significant(smaller.value),
        **({} if bounds is None else {"range": f"{bounds[0]:.4g} to {bounds[1]:.4g}"}),
        "extra": _extra(result, one),
    }


def _extra(result: CheckResult, one: Measured) -> str:
    verdict = "not judged" if one.verdict is None else one.verdict.upper()
    return "\n".join((f"verdict: {verdict}", wording.outside(result.device_name), *wording.side_lines(result)))
