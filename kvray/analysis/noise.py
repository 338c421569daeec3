"""How much fresh processes of one configuration differ: what is known beforehand, corrected by what was seen.

Every candidate has a noise of its own. Its logarithm is that of the machine, which all candidates tell about, plus what
is special about the candidate. That is little for most and much for a few, so one candidate with an outlying process
is believed to be noisy itself and hardly changes what is believed of the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kvray.analysis.evidence import DECODE, PEAK, SEARCH_ROUND, TTFT, Array, Evidence, Flags, Indices

PROCESS_SD = np.zeros(3)
PROCESS_SD[[TTFT, DECODE, PEAK]] = 0.045, 0.015, 0.005
"""Relative standard deviation between fresh processes of one candidate that is as likely too high as too low. On a
shared 2-core CPU, TTFT spread by about 6 % and decode by about 1.5 %; on quieter machines it is less."""
MACHINE_SD = 0.5
"""Standard deviation of the logarithm of a machine's noise: machines differ by a factor of 1.7 as a rule. Together with
`PROCESS_SD` and the candidates' own part the root mean square is about 7 % for TTFT: with a single process each,
intervals are as wide as the noisier machines need. A lognormal belief yields to few processes of a quiet machine, where
the conjugate one (a scaled inverse chi-square) keeps most of its variance."""
ORDINARY_SD, ODD_SD = 0.2, 1.5
"""The same of a candidate's own part: for most candidates, and for the few that are unlike the others."""
ODD_SHARE = 0.07
EQUALLY_LIKELY = 32
_STEP = 0.05
_GRID = np.arange(-2.5, 4.5, _STEP)
"""Logarithms of a standard deviation over its typical value."""
_REFITS = 10
"""Enough for the variances to settle where one process took twice as long as the others."""
_DISTURBED_VARIANCE = 25.0
"""Variance of a disturbed process over that of others, when the rounds are first fitted."""
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class ProcessVariances:
    """`EQUALLY_LIKELY` draws from the belief about the variances between processes, of the machine and all candidates
    together.

    Attributes:
        machine: one per draw: of an ordinary candidate.
        own: draws × candidates, in the order of the evidence's ids.
    """

    machine: Array
    own: Array


def process_variances(evidence: Evidence, weights: Array, *, paired: bool = True) -> ProcessVariances:
    """What the variances between processes of `logs @ weights` may be. The same evidence gives the same draws.

    It is seen where a candidate has several processes; the runs' share is taken off. Disturbed processes tell about
    their own candidate only.

    Args:
        paired: take out what all processes of a confirming round have in common, because comparisons within rounds do.
    """
    rounds = evidence.rounds if paired else np.full_like(evidence.rounds, SEARCH_ROUND)
    typical = typical_variance(weights)
    seen = _seen(evidence, evidence.logs @ weights, evidence.within @ weights**2, rounds, typical)
    machine, own = _joint_draws(_believe(seen, typical), seen, len(evidence.ids))
    return ProcessVariances(machine=typical * np.exp(2 * machine), own=typical * np.exp(2 * own))


def typical_variance(weights: Array) -> float:
    """The variance between processes of `logs @ weights` that is expected before anything is measured."""
    return max(float(weights**2 @ PROCESS_SD**2), _TINY)


def half_width_95(variances: Array) -> float:
    """Half the interval that holds 95 % of a normal error whose variance is any of `variances`, equally likely."""
    deviations = [max(math.sqrt(one), _TINY) for one in variances]
    widths = [math.sqrt(2) * one for one in deviations]
    low, high = 0.0, 2.0 * max(deviations)  # the widest alone would need 1.96
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        held = math.fsum(map(math.erf, [middle / one for one in widths])) / len(widths)
        low, high = (middle, high) if held < 0.95 else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What C candidates with several processes each show of their noise.

    Attributes:
        places: C indices into the evidence's ids.
        squares, freedom: C sums of squares of what the fit leaves, and their degrees of freedom.
        within: C mean variances that a process has from its own runs.
        disturbed: C: whether one of the processes was.
    """

    places: Indices
    squares: Array
    freedom: Array
    within: Array
    disturbed: Flags


@dataclass(frozen=True, kw_only=True)
class _Belief:
    """Probabilities on `_GRID`.

    Attributes:
        machine: of the machine's noise.
        own: C × grid likelihoods of each candidate's noise, by its own processes alone.
    """

    machine: Array
    own: Array

    def typical_variances(self, typical: float) -> Array:
        """One variance per candidate: the mean of its logarithm's belief."""
        mass = (self.machine @ _OWN_PART) * self.own
        return np.asarray(typical * np.exp(2 * (mass @ _GRID) / mass.sum(axis=1)))


def _own_part() -> Array:
    """Grid × grid: the probability of a candidate's noise (column), given that of its machine (row)."""
    distance = _GRID[None, :] - _GRID[:, None]
    ordinary = np.exp(-((distance / ORDINARY_SD) ** 2) / 2) / ORDINARY_SD
    odd = np.exp(-((distance / ODD_SD) ** 2) / 2) / ODD_SD
    mass = (1 - ODD_SHARE) * ordinary + ODD_SHARE * odd
    return np.asarray(mass / mass.sum(axis=1, keepdims=True))


_OWN_PART = _own_part()


def _seen(evidence: Evidence, values: Array, within: Array, rounds: Indices, typical: float) -> _Seen:
    """Fit candidates and rounds by weighted least squares, and again with the variances that the fit shows: else the
    outlier of one candidate would shift its round, and so stand in the residuals of all others."""
    counts = np.bincount(evidence.owner, minlength=len(evidence.ids))
    rows = counts[evidence.owner] > 1
    places, owner = np.unique(evidence.owner[rows], return_inverse=True)
    values, within, rounds, disturbed = values[rows], within[rows], rounds[rows], evidence.disturbed[rows]
    confirming = np.unique(rounds[rounds != SEARCH_ROUND])
    effects = np.concatenate([owner[:, None] == np.arange(len(places)), rounds[:, None] == confirming], axis=1)
    variances = np.where(disturbed, _DISTURBED_VARIANCE, 1.0) * typical
    seen = _summed(values, within, disturbed, owner, places, effects.astype(float), variances)
    for _ in range(_REFITS if len(confirming) and len(places) > 1 else 0):
        variances = _believe(seen, typical).typical_variances(typical)[owner] + within
        seen = _summed(values, within, disturbed, owner, places, effects.astype(float), variances)
    return seen


def _summed(
    values: Array, within: Array, disturbed: Flags, owner: Indices, places: Indices, effects: Array, variances: Array
) -> _Seen:
    scale = 1 / np.sqrt(variances)[:, None]
    # The columns of `left` span what candidates and rounds explain.
    left, strength, _ = np.linalg.svd(effects * scale, full_matrices=False)
    left = left[:, strength > 1e-9 * strength.max(initial=0.0)]
    residuals = (values * scale[:, 0] - left @ (left.T @ (values * scale[:, 0]))) / scale[:, 0]
    count = len(places)
    return _Seen(
        places=places,
        squares=_per_candidate(owner, residuals**2, count),
        freedom=_per_candidate(owner, np.maximum(1 - (left**2).sum(axis=1), 0.0), count),
        within=_per_candidate(owner, within, count) / np.maximum(np.bincount(owner, minlength=count), 1),
        disturbed=_per_candidate(owner, disturbed.astype(float), count) > 0,
    )


def _per_candidate(owner: Indices, values: Array, count: int) -> Array:
    """Sums of `values` over each candidate's rows; also of none, where numpy's own would be of integers."""
    return np.asarray(np.bincount(owner, values, count), dtype=np.float64)


def _believe(seen: _Seen, typical: float) -> _Belief:
    variances = typical * np.exp(2 * _GRID)[None, :] + seen.within[:, None]
    logs = -(seen.freedom[:, None] * np.log(variances) + seen.squares[:, None] / variances) / 2
    own = np.exp(logs - logs.max(axis=1, keepdims=True))
    told = np.log((own @ _OWN_PART.T)[~seen.disturbed] + 1e-300).sum(axis=0)
    posterior = -((_GRID / MACHINE_SD) ** 2) / 2 + told
    mass = np.exp(posterior - posterior.max())
    return _Belief(machine=mass / mass.sum(), own=own)


def _joint_draws(posterior: _Belief, seen: _Seen, candidates: int) -> tuple[Array, Array]:
    """Points of the grid's axis: the machine's noise by its quantiles, and given each, every candidate's by a quantile
    in an order of its own."""
    levels = (np.arange(EQUALLY_LIKELY) + 0.5) / EQUALLY_LIKELY
    machines = np.searchsorted(np.cumsum(posterior.machine), levels).clip(max=len(_GRID) - 1)
    shuffled = np.random.default_rng(0).permuted(np.tile(levels, (candidates, 1)), axis=1).T
    draws = np.empty((EQUALLY_LIKELY, candidates))
    for row, machine in enumerate(machines):
        draws[row] = _quantiles(_OWN_PART[machine], shuffled[row])
        for place, own in zip(seen.places, posterior.own, strict=True):
            draws[row, place] = _quantiles(_OWN_PART[machine] * own, shuffled[row, place])
    return _GRID[machines], draws


def _quantiles(mass: Array, levels: Array) -> Array:
    places = (np.cumsum(mass) - mass / 2) / mass.sum()
    return np.asarray(np.interp(levels, places, _GRID))
