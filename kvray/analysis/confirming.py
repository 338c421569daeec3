"""The confirm phase's decisions, without its doing: who runs again in the next round, and when enough is known."""

from __future__ import annotations

import numpy as np

from kvray.analysis.evidence import DECODE, METRICS, PEAK, TTFT, Array, Evidence
from kvray.workload import WorkloadProfile

MOST_CONTENDERS = 4
"""In a round, the winner so far among them; the baseline comes on top."""


def next_round(
    evidence: Evidence, *, baseline_id: str | None, round_number: int, most_rounds: int, weights: Array
) -> tuple[str, ...]:
    """Candidate ids to run once more, each in a fresh process, in this order; empty when confirming is over.

    A round is the winner so far, at most three rivals that cannot be told apart from it, and the baseline, each once.
    The order rotates from round to round. A confirming trial measures every full-length cell once after its warm-up
    (rung 1) and no quality; its id is `confirm_trial_id(round_number, candidate_id)`. A candidate that the scheduler
    had stopped is among the rivals if it may be the best: its quality was perhaps never measured.

    Args:
        round_number: of the round to come, from 1.
        weights: of the profile, as `utility_weights` gives them.
    """
    if round_number > most_rounds or not evidence.contenders:
        return ()
    utilities = evidence.logs @ weights
    means = {key: float(utilities[evidence.owner == place].mean()) for place, key in enumerate(evidence.ids)}
    best = sorted(evidence.contenders, key=lambda key: (-means[key], key))[:MOST_CONTENDERS]
    lineup = [*best, *([baseline_id] if baseline_id in evidence.ids and baseline_id not in best else [])]
    turn = (round_number - 1) % len(lineup)
    return tuple(lineup[turn:] + lineup[:turn])


def utility_weights(profile: WorkloadProfile) -> Array:
    """What `Evidence.logs` are multiplied by to become utilities."""
    weights = np.zeros(len(METRICS))
    weights[[TTFT, DECODE, PEAK]] = -profile.weight_ttft, profile.weight_throughput, -profile.weight_memory
    return weights
