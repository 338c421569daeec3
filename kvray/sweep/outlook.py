"""What is still to come in a sweep: trials and seconds, roughly, for people who wait."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from kvray.analysis.confirming import MOST_IN_ROUND
from kvray.analysis.sampler import ENUMERATED
from kvray.config import SearchStrategy
from kvray.forecast.prediction import CellForecast, Forecast
from kvray.trial.spec import ALL_RUNGS, CONFIRM_RUNGS, SEARCH_RUNGS

Range = tuple[float, float]
"""Least and most."""
_LAUNCHES_PER_ROOT = 2.2
"""Launches of the model's search over the square root of the candidates. `benchmarks/search_cost.py` saw 10 launches of
24 candidates, 17 of 50, 22 of 100, 34 of 200 and 40 of 400."""
_AT_MOST_TIMES = 2.0
"""A rugged space takes up to so many times the usual launches (the benchmark's hard landscapes)."""
_START_S = 3.0
"""What a trial of a small model takes beside its generations: fork, load from the page cache, proof, quality."""
_WARMUP_CALLS, _WARMUP_TOKENS = 3, 8
_SWEEP_S = 10.0
"""Ray's start and end, and the reports."""
_SHORTER, _LONGER = 0.7, 2.0
"""Forecast seconds are that far off as a rule (`benchmarks/forecast.py`)."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """How far a sweep is, at the beginning or the end of a trial.

    Attributes:
        confirming: number of the latest confirming trial, from 1; 0 while the search goes on.
        confirming_most: confirming trials there will be at most.
        left_s: seconds until the sweep ends; `None` before any trial has told how long one takes.
        gpu_type: Ray's accelerator type, where this is told of the trials on GPUs of that type alone.
    """

    confirming: int = 0
    confirming_most: int = 0
    left_s: Range | None = None
    gpu_type: str | None = None


def expected_launches(strategy: SearchStrategy, candidates: int, *, most: int | None = None) -> Range:
    """Launches of a search among `candidates`, the baseline included; `most` is what the user allows."""
    bound = candidates if most is None else min(candidates, most)
    if strategy is not SearchStrategy.MODEL or candidates <= ENUMERATED:
        return bound, bound
    usual = _LAUNCHES_PER_ROOT * math.sqrt(candidates)
    return min(bound, round(usual)), min(bound, round(_AT_MOST_TIMES * usual))


def expected_seconds(
    baseline: Forecast,
    others: Sequence[Forecast],
    *,
    launches: Range,
    repeats: int,
    confirm_rounds: int,
    slots: int = 1,
    measured: int = 0,
) -> Range | None:
    """Seconds that a sweep will take by forecast, least and most; `None` where no times are forecast.

    Args:
        launches: of the search, the baseline's included, as `expected_launches` says.
        repeats: runs of each cell.
        measured: launches that an earlier attempt has made, the baseline's included.
    """
    searched = [_trial_s(one, SEARCH_RUNGS if confirm_rounds else ALL_RUNGS, repeats) for one in others]
    first, again = _trial_s(baseline, ALL_RUNGS, repeats), _trial_s(baseline, CONFIRM_RUNGS, repeats)
    known = [one for one in searched if one is not None]
    if first is None or again is None or len(known) < len(searched):
        return None
    each = statistics.fmean(known) if known else 0.0
    begun = first if measured == 0 else 0.0
    rounds = (min(1, confirm_rounds) * 2, confirm_rounds * MOST_IN_ROUND) if known else (0, 0)
    least, most = (
        begun + (max(0, launched - max(1, measured)) * each + confirmed * again) / slots
        for launched, confirmed in zip(launches, rounds, strict=True)
    )
    return _SWEEP_S + _SHORTER * least, _SWEEP_S + _LONGER * most


def _trial_s(forecast: Forecast, rungs: Sequence[int], repeats: int) -> float | None:
    runs = {0: forecast.short_cells, 1: forecast.cells, 2: forecast.cells * (repeats - 1)}
    generations = [_generation_s(cell, cell.cell.output_tokens) for rung in rungs for cell in runs[rung]]
    warm_up = [_generation_s(cell, _WARMUP_TOKENS) for cell in forecast.cells for _ in range(_WARMUP_CALLS)]
    seconds = [one for one in (*generations, *warm_up) if one is not None]
    return None if len(seconds) < len(generations) + len(warm_up) else _START_S + math.fsum(seconds)


def _generation_s(one: CellForecast, tokens: int) -> float | None:
    if one.ttft_ms is None or one.decode_tok_s is None:
        return None
    return one.ttft_ms / 1e3 + (tokens - 1) * one.cell.batch_size / one.decode_tok_s
