"""How much fresh processes of one configuration differ: what is known beforehand, corrected by what was seen."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from kvray.analysis.evidence import DECODE, PEAK, SEARCH_ROUND, TTFT, Array, Evidence, Indices

PROCESS_SD = np.zeros(3)
PROCESS_SD[[TTFT, DECODE, PEAK]] = 0.045, 0.015, 0.005
"""Relative standard deviation between fresh processes of one candidate that is as likely too high as too low. On a
shared 2-core CPU "TTFT spreads ± 10 % (standard deviation about 6 %), decode ± 3 % (about 1.5 %)" (FACTS); on quieter
machines it is less."""
SD_FACTOR = 0.6
"""Standard deviation of the logarithm of that: machines differ by a factor of 1.8 as a rule, by 3.2 in one of twenty.
Together with `PROCESS_SD` the root mean square is 6.5 % and 2.2 %: with a single process each, intervals are as wide as
the noisier machines need. A lognormal belief yields to few processes of a quiet machine, where the conjugate one (a
scaled inverse chi-square) keeps most of its variance."""
EQUALLY_LIKELY = 16
_GRID = np.linspace(-4.0, 4.0, 161)
_NORMAL = NormalDist()
_TINY = 1e-12


def process_variances(evidence: Evidence, weights: Array, *, paired: bool = True) -> Array:
    """What the variance between processes of `logs @ weights` may be: `EQUALLY_LIKELY` values, rising.

    Seen is it where a candidate has several processes, pooled over all such candidates. The runs' share is taken off.

    Args:
        paired: take out what all processes of a confirming round have in common, because comparisons within rounds do.
    """
    rounds = evidence.rounds if paired else np.full_like(evidence.rounds, SEARCH_ROUND)
    squares, freedom, within = _residuals(evidence, evidence.logs @ weights, evidence.within @ weights**2, rounds)
    variances = float(weights**2 @ PROCESS_SD**2) * np.exp(2 * SD_FACTOR * _GRID)
    belief = -(_GRID**2) / 2
    if freedom:
        belief -= (freedom * np.log(variances + within) + squares / (variances + within)) / 2
    mass = np.exp(belief - belief.max())
    places = (np.cumsum(mass) - mass / 2) / mass.sum()
    return np.interp((np.arange(EQUALLY_LIKELY) + 0.5) / EQUALLY_LIKELY, places, variances)


def half_width_95(variances: Array) -> float:
    """Of the interval that holds 95 % of a normal error whose variance is any of `variances`, equally likely."""
    deviations = [max(math.sqrt(one), _TINY) for one in variances]
    low, high = 0.0, 2.0 * max(deviations)  # the widest alone would need 1.96
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        held = 2 * math.fsum(_NORMAL.cdf(middle / one) for one in deviations) / len(deviations) - 1
        low, high = (middle, high) if held < 0.95 else (low, middle)
    return (low + high) / 2


def _residuals(evidence: Evidence, values: Array, within: Array, rounds: Indices) -> tuple[float, int, float]:
    """Sum of squares and degrees of freedom left when candidates and rounds are fitted, and the mean of `within`."""
    repeated = np.bincount(evidence.owner, minlength=len(evidence.ids))[evidence.owner] > 1
    if not repeated.any():
        return 0.0, 0, 0.0
    owner, rounds = evidence.owner[repeated], rounds[repeated]
    confirming = np.unique(rounds[rounds != SEARCH_ROUND])
    effects = np.concatenate([owner[:, None] == np.unique(owner), rounds[:, None] == confirming], axis=1).astype(float)
    fitted, _, rank, _ = np.linalg.lstsq(effects, values[repeated], rcond=None)
    left = values[repeated] - effects @ fitted
    return float(left @ left), len(left) - int(rank), float(within[repeated].mean())
