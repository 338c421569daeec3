"""What a simulated sweep claims, and whether it is true: for `calibration.py` and its sweeps of two engines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from simulated_sweeps import Array, Generator, Machine, calm, joined

from kvray.analysis.choice import choose
from kvray.analysis.confirming import next_round
from kvray.analysis.evidence import DECODE, PEAK, TTFT, Evidence
from kvray.analysis.intervals import gain_interval, paired_rounds
from kvray.analysis.utility_posterior import NEAR, draw_utilities

BASELINE = "0"
BINS = 10
FEWEST_IN_A_BIN = 50


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a sweep claimed, and what is true.

    Attributes:
        claimed: confidence that the chosen candidate is the best.
        claimed_near: that nothing is better than it by more than 2 %.
        chosen: number of the candidate.
        cost_of_choosing: by which the chosen one is truly worse than the one that led, in utility.
        gains_covered: whether the 95 % intervals of its gains in TTFT and throughput hold the true ones.
        widths: of these intervals: the number of pairs, and the width over that of the pairs' plain t interval.
    """

    shape: str
    chosen: int
    claimed: float
    claimed_near: float
    is_best: bool
    is_near: bool
    cost_of_choosing: float
    gains_covered: tuple[bool, ...]
    widths: tuple[tuple[int, float], ...]
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Sweeps whose claims lie in the same tenth."""

    claimed: float
    right: float
    n: int

    def figures(self) -> dict[str, float]:
        """For JSON."""
        return {"claimed": round(self.claimed, 4), "right": round(self.right, 4), "n": self.n}


def swept(machine: Machine, truth: Array, weights: Array, generator: Generator) -> tuple[Evidence, int]:
    """What a sweep measures, and its confirming rounds.

    The search measures every candidate once, the confirm phase whom `next_round` names.
    """
    evidence = machine.measure(truth, np.arange(len(truth)), 0, generator)
    most_rounds, rounds = int(generator.integers(1, 4)), 0
    while lineup := next_round(
        calm(evidence), baseline_id=BASELINE, round_number=rounds + 1, most_rounds=most_rounds, weights=weights
    ):
        rounds += 1
        evidence = joined(evidence, machine.measure(truth, np.array([int(key) for key in lineup]), rounds, generator))
    return calm(evidence), rounds


def judge(shape: str, evidence: Evidence, truth: Array, weights: Array, rounds: int, generator: Generator) -> Outcome:
    """Compare the claims with `truth`. Which candidate is simpler is drawn by lot."""
    posterior = draw_utilities(evidence, evidence.ids, weights, seed=int(generator.integers(1 << 30)), draws=2000)
    peaks = {key: math.exp(truth[int(key), PEAK]) for key in evidence.ids}
    choice = choose(posterior, peaks, {key: (int(generator.integers(5)), False, False) for key in evidence.ids})
    utilities = truth @ weights
    chosen, over = int(choice.candidate_id), int(choice.over)
    behind = float(utilities.max() - utilities[chosen])
    covered, widths = [], []
    for metric in (TTFT, DECODE):
        stated = gain_interval(evidence, choice.candidate_id, BASELINE, metric)
        covered.append(abs(truth[chosen, metric] - truth[0, metric] - stated.value) <= stated.half_width)
        if plain := plain_half_width(evidence, choice.candidate_id, metric):
            widths.append((len(paired_rounds(evidence, choice.candidate_id, BASELINE)), stated.half_width / plain))
    return Outcome(
        shape=shape,
        chosen=chosen,
        claimed=posterior.lead_shares[choice.candidate_id],
        claimed_near=posterior.near_share(choice.candidate_id),
        is_best=behind <= 1e-9,
        is_near=behind <= NEAR,
        cost_of_choosing=float(utilities[over] - utilities[chosen]),
        gains_covered=tuple(covered) if chosen else (),
        widths=tuple(widths) if chosen else (),
        rounds=rounds,
    )


def plain_half_width(evidence: Evidence, candidate_id: str, metric: int) -> float | None:
    """Half the 95 % t interval of the mean difference of the pairs; `None` with fewer than two."""
    pairs = paired_rounds(evidence, candidate_id, BASELINE)
    if len(pairs) < 2:
        return None
    own, base = (
        [evidence.logs[(evidence.owner == int(key)) & (evidence.rounds == one), metric].item() for one in pairs]
        for key in (candidate_id, BASELINE)
    )
    error = np.subtract(own, base).std(ddof=1) / math.sqrt(len(pairs))
    return float(stats.t.ppf(0.975, len(pairs) - 1) * error)


def bins(claims: Sequence[tuple[float, bool]]) -> list[Bin]:
    """Ten tenths, the empty ones left out."""
    by_tenth = [[one for one in claims if min(int(one[0] * BINS), BINS - 1) == tenth] for tenth in range(BINS)]
    return [
        Bin(claimed=float(np.mean([claim for claim, _ in of])), right=share([right for _, right in of]), n=len(of))
        for of in by_tenth
        if of
    ]


def worst_gap(found: Sequence[Bin]) -> float:
    """Between claim and truth, over the bins with enough sweeps."""
    return max((abs(one.claimed - one.right) for one in found if one.n >= FEWEST_IN_A_BIN), default=0.0)


def share(flags: Sequence[bool]) -> float:
    return float(np.mean(flags))
