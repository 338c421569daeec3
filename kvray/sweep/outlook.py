"""What is still to come in a sweep: trials and seconds, roughly, for people who wait."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kvray.analysis.axis_search import ENUMERATED
from kvray.config import SearchStrategy

Range = tuple[float, float]
"""Least and most."""
_LAUNCHES_PER_ROOT = 2.2
"""Launches of the model's search over the square root of the candidates. `benchmarks/search_cost.py` saw 10 launches of
24 candidates, 17 of 50, 22 of 100, 34 of 200 and 40 of 400."""
_AT_MOST_TIMES = 2.0
"""A rugged space takes up to so many times the usual launches (the benchmark's hard landscapes)."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """How far a sweep is, at the beginning or the end of a trial.

    Attributes:
        confirming: number of the latest confirming trial, from 1; 0 while the search goes on.
        confirming_most: confirming trials there will be at most.
        left_s: seconds until the sweep ends; `None` before any trial has told how long one takes.
    """

    confirming: int = 0
    confirming_most: int = 0
    left_s: Range | None = None


def expected_launches(strategy: SearchStrategy, candidates: int, *, most: int | None = None) -> Range:
    """Launches of a search among `candidates`, the baseline included; `most` is what the user allows."""
    bound = candidates if most is None else min(candidates, most)
    if strategy is not SearchStrategy.MODEL or candidates <= ENUMERATED:
        return bound, bound
    usual = _LAUNCHES_PER_ROOT * math.sqrt(candidates)
    return min(bound, round(usual)), min(bound, round(_AT_MOST_TIMES * usual))
