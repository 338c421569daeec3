"""Configurations whose processes are of two kinds, decided when a process starts: said, not averaged away."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kvray.analysis.evidence import DECODE, TTFT, Array, Evidence
from kvray.analysis.noise import PROCESS_SD

LEAST_GAP = math.log(1.08)
FEWEST_PROCESSES = 4
FEWEST_IN_A_GROUP = 2
_TIMES_NOISE = 3.0
_TIMES_RANGE = 3.0


@dataclass(frozen=True, kw_only=True)
class Bimodality:
    """Two groups of a candidate's processes, far apart in one metric.

    Attributes:
        metric: `TTFT` or `DECODE`.
        low, high: geometric means of the groups, ms or tok/s.
        processes: in the low and in the high group.
    """

    candidate_id: str
    metric: int
    low: float
    high: float
    processes: tuple[int, int]


def find_bimodality(evidence: Evidence, ids: Iterable[str]) -> tuple[Bimodality, ...]:
    """Candidates in `ids` that have at least four processes in two groups of two or more, per metric.

    The gap must be 8 % at least, three times the usual noise between processes, and three times the wider group.
    """
    found = ((key, metric, _split(_logs(evidence, key, metric), metric)) for key in ids for metric in (TTFT, DECODE))
    return tuple(
        Bimodality(
            candidate_id=key,
            metric=metric,
            low=math.exp(groups[0].mean()),
            high=math.exp(groups[1].mean()),
            processes=(len(groups[0]), len(groups[1])),
        )
        for key, metric, groups in found
        if groups
    )


def may_be_bimodal(evidence: Evidence, candidate_id: str) -> bool:
    """Whether a candidate with too few processes to tell has two that lie as far apart as groups would."""
    for metric in (TTFT, DECODE):
        logs = _logs(evidence, candidate_id, metric)
        if 1 < len(logs) < FEWEST_PROCESSES and np.diff(np.sort(logs)).max() >= _least_gap(metric):
            return True
    return False


def _split(logs: Array, metric: int) -> Sequence[Array]:
    """The two groups on either side of the widest gap, if they are groups; else nothing."""
    ordered = np.sort(logs)
    if len(ordered) < FEWEST_PROCESSES:
        return ()
    gaps = np.diff(ordered)
    place = int(np.argmax(gaps)) + 1
    groups = ordered[:place], ordered[place:]
    widest = max(float(np.ptp(group)) for group in groups)
    is_far = gaps.max() >= max(_least_gap(metric), _TIMES_RANGE * widest)
    return groups if is_far and min(map(len, groups)) >= FEWEST_IN_A_GROUP else ()


def _logs(evidence: Evidence, candidate_id: str, metric: int) -> Array:
    return np.asarray(evidence.logs[evidence.rows_of(candidate_id), metric])


def _least_gap(metric: int) -> float:
    return max(LEAST_GAP, _TIMES_NOISE * float(PROCESS_SD[metric]))
