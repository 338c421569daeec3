"""How much fresh processes of one configuration differ: what is known beforehand, corrected by what was seen.

Every candidate has a noise of its own. Its logarithm is that of its engine on this machine, which all candidates of
the engine tell about, plus what is special about the candidate. That is little for most and much for a few, so one
candidate with an outlying process is believed to be noisy itself and hardly changes what is believed of the others.

Where a sweep has several engines, the logarithm of an engine's noise is that of the machine plus what is special about
the engine (`engine_noise.ENGINE_SD`). An engine of which little was seen is believed to be about as noisy as the
others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from kvray.analysis.engine_noise import ENGINE_SD
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
_AT_ONCE = 64
"""Candidates whose noise is drawn together: all at once would need much memory."""
_DISTURBED_VARIANCE = 25.0
"""Variance of a disturbed process over that of others, when the rounds are first fitted."""
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class ProcessVariances:
    """`EQUALLY_LIKELY` draws from the belief about the variances between processes, of the machine, its engines and all
    candidates together.

    Attributes:
        machine: one per draw: of an ordinary candidate of an ordinary engine.
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
    machine, own = _joint_draws(_believe(seen, typical, evidence.engine_of), seen, evidence.engine_of)
    return ProcessVariances(machine=typical * np.exp(2 * machine), own=typical * np.exp(2 * own))


def lone_variances(squares: Array, freedom: Array, typical: Array) -> Array:
    """S × `EQUALLY_LIKELY` draws from the belief about the variances of S quantities, each judged by its own values.

    Args:
        squares: S sums of squares of the values around their mean.
        freedom: S degrees of freedom of `squares`; 0 where there is a single value.
        typical: S variances that are expected before anything is measured.
    """
    variances = typical[:, None] * np.exp(2 * _GRID)
    logs = -(freedom[:, None] * np.log(variances) + squares[:, None] / variances) / 2
    mass = _LONE_PRIOR * np.exp(logs - logs.max(axis=1, keepdims=True))
    levels = (np.arange(EQUALLY_LIKELY) + 0.5) / EQUALLY_LIKELY
    drawn = _inverted(_quantiles(mass)[:, None, :], np.broadcast_to(levels, (len(squares), EQUALLY_LIKELY)))
    return np.asarray(typical[:, None] * np.exp(2 * drawn))


def typical_variance(weights: Array) -> float:
    """The variance between processes of `logs @ weights` that is expected before anything is measured."""
    return max(float(weights**2 @ PROCESS_SD**2), _TINY)


def half_width_95(variances: Array) -> float:
    """Half the interval that holds 95 % of a normal error whose variance is any of `variances`, equally likely."""
    return half_widths_95(variances[None, :])[0]


def half_widths_95(variances: Array) -> list[float]:
    """The `half_width_95` of each row of `variances`, all of them at once."""
    return half_widths(variances, level=0.95)


def half_widths(variances: Array, *, level: float) -> list[float]:
    """The same of intervals that hold `level` of the errors, by Newton's method within bounds."""
    alone = round(NormalDist().inv_cdf((1 + level) / 2), 2)  # where there is one variance, to two digits
    deviations = np.maximum(np.sqrt(variances), _TINY)
    scales = 1 / (math.sqrt(2) * deviations)
    low, high = (alone - 0.01) * deviations.min(axis=1), (alone + 0.01) * deviations.max(axis=1)
    widths = np.sqrt((deviations**2).mean(axis=1)) * alone
    rest = np.arange(len(widths))  # most rows are found in four steps, a few need ten
    for _ in range(_MOST_STEPS):
        at = np.minimum(widths[rest, None] * scales[rest], _ERF_END)
        beyond = _erf(at).mean(axis=1) - level
        low[rest] = np.where(beyond < 0, widths[rest], low[rest])
        high[rest] = np.where(beyond < 0, high[rest], widths[rest])
        slopes = (np.exp(-(at**2)) * scales[rest]).mean(axis=1) * (2 / math.sqrt(math.pi))
        stepped = widths[rest] - beyond / np.maximum(slopes, _TINY)
        is_inside = (stepped > low[rest]) & (stepped < high[rest])
        stepped = np.where(is_inside, stepped, (low[rest] + high[rest]) / 2)
        is_found = np.abs(stepped - widths[rest]) <= 1e-5 * stepped
        widths[rest] = stepped
        rest = rest[~is_found]
        if not len(rest):
            break
    return widths.tolist()  # type: ignore[no-any-return]


def _erf(at: Array) -> Array:
    """The error function, which numpy lacks, between the points of a table; straight there within 3e-8."""
    place = at * _ERF_STEPS
    below = place.astype(np.int64)
    return np.asarray(_ERF[below] + (_ERF[below + 1] - _ERF[below]) * (place - below))


_MOST_STEPS = 60
_ERF_STEPS, _ERF_END = 2000, 6.0
_ERF = np.array([math.erf(place / _ERF_STEPS) for place in range(int(_ERF_END * _ERF_STEPS) + 2)])


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
    """What is believed on `_GRID`.

    Attributes:
        machine: probabilities of the machine's noise; of a single engine it is the engine's own.
        engines: engines × grid probabilities of each engine's noise.
        told: engines × grid logarithms of its likelihood, by the engine's own candidates alone.
        own: C × grid likelihoods of each candidate's noise, by its own processes alone.
        engine_of: C numbers of engines.
    """

    machine: Array
    engines: Array
    told: Array
    own: Array
    engine_of: Indices

    def typical_variances(self, typical: float) -> Array:
        """One variance per candidate: the mean of its logarithm's belief."""
        ordinary = np.array([engine @ _OWN_PART for engine in self.engines])
        mass = ordinary[self.engine_of] * self.own
        return np.asarray(typical * np.exp(2 * (mass @ _GRID) / mass.sum(axis=1)))


def _own_part() -> Array:
    """Grid × grid: the probability of a candidate's noise (column), given that of its engine (row)."""
    distance = _GRID[None, :] - _GRID[:, None]
    ordinary = np.exp(-((distance / ORDINARY_SD) ** 2) / 2) / ORDINARY_SD
    odd = np.exp(-((distance / ODD_SD) ** 2) / 2) / ODD_SD
    mass = (1 - ODD_SHARE) * ordinary + ODD_SHARE * odd
    return np.asarray(mass / mass.sum(axis=1, keepdims=True))


_OWN_PART = _own_part()


def _engine_part() -> Array:
    """Grid × grid: the probability of an engine's noise (column), given that of its machine (row)."""
    mass = np.exp(-(((_GRID[None, :] - _GRID[:, None]) / ENGINE_SD) ** 2) / 2)
    return np.asarray(mass / mass.sum(axis=1, keepdims=True))


_ENGINE_PART = _engine_part()


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
        variances = _believe(seen, typical, evidence.engine_of).typical_variances(typical)[owner] + within
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


def _believe(seen: _Seen, typical: float, engine_of: Indices) -> _Belief:
    variances = typical * np.exp(2 * _GRID)[None, :] + seen.within[:, None]
    logs = -(seen.freedom[:, None] * np.log(variances) + seen.squares[:, None] / variances) / 2
    own = np.exp(logs - logs.max(axis=1, keepdims=True))
    owners = engine_of[seen.places]
    likelihoods = np.log(own @ _OWN_PART.T + 1e-300)
    told = np.array(
        [likelihoods[~seen.disturbed & (owners == engine)].sum(axis=0) for engine in range(engine_of.max() + 1)]
    )
    machine, engines = _engines_belief(told)
    return _Belief(machine=machine, engines=engines, told=told, own=own, engine_of=owners)


def _engines_belief(told: Array) -> tuple[Array, Array]:
    """Probabilities on `_GRID` of the machine's noise, and of each engine's.

    Args:
        told: logarithms of each engine's likelihood.
    """
    prior = -((_GRID / MACHINE_SD) ** 2) / 2
    if len(told) == 1:
        machine = _probabilities(prior + told[0])
        return machine, machine[None]
    through = np.log(np.exp(told - told.max(axis=1, keepdims=True)) @ _ENGINE_PART.T + 1e-300)
    others = prior + through.sum(axis=0) - through
    pairs = zip(others, told, strict=True)
    engines = [_probabilities(np.log(_probabilities(one) @ _ENGINE_PART) + own) for one, own in pairs]
    return _probabilities(prior + through.sum(axis=0)), np.array(engines)


def _probabilities(logs: Array) -> Array:
    mass = np.exp(logs - logs.max())
    return np.asarray(mass / mass.sum())


def _joint_draws(posterior: _Belief, seen: _Seen, engine_of: Indices) -> tuple[Array, Array]:
    """Points of the grid's axis: the machine's noise by its quantiles, and given each, every engine's and then every
    candidate's by a quantile in an order of its own."""
    levels = (np.arange(EQUALLY_LIKELY) + 0.5) / EQUALLY_LIKELY
    machines = np.searchsorted(np.cumsum(posterior.machine), levels).clip(max=len(_GRID) - 1)
    generator = np.random.default_rng(0)
    shuffled = generator.permuted(np.tile(levels, (len(engine_of), 1)), axis=1).T
    engines = _engine_draws(posterior, machines, generator)
    draws = np.empty(shuffled.shape)
    for row, centres in enumerate(engines):
        for engine, centre in enumerate(centres):
            its = engine_of == engine
            draws[row, its] = np.interp(shuffled[row, its], _OWN_QUANTILES[centre], _GRID)
    for start in range(0, len(seen.places), _AT_ONCE):
        its = slice(start, start + _AT_ONCE)
        mass = _OWN_PART[engines[:, posterior.engine_of[its]]] * posterior.own[its]
        draws[:, seen.places[its]] = _inverted(_quantiles(mass), shuffled[:, seen.places[its]])
    return _GRID[machines], draws


def _engine_draws(posterior: _Belief, machines: Indices, generator: np.random.Generator) -> Indices:
    """Draws × engines: places on `_GRID` of each engine's noise, given that of the machine."""
    if len(posterior.told) == 1:
        return machines[:, None]
    levels = (np.arange(len(machines)) + 0.5) / len(machines)
    drawn = []
    for told in posterior.told:
        mass = _ENGINE_PART[machines] * np.exp(told - told.max())
        sums = np.cumsum(mass, axis=1) / mass.sum(axis=1, keepdims=True)
        drawn.append((sums < generator.permuted(levels)[:, None]).sum(axis=1))
    return np.stack(drawn, axis=1).clip(max=len(_GRID) - 1)


def _quantiles(mass: Array) -> Array:
    """Which quantile each point of `_GRID` is, where `mass` has it along its last axis."""
    return np.asarray((np.cumsum(mass, axis=-1) - mass / 2) / mass.sum(axis=-1, keepdims=True))


def _inverted(quantiles: Array, levels: Array) -> Array:
    """Points between those of `_GRID` that are the quantiles `levels`: one for each row of `quantiles`, whose last axis
    is the grid's."""
    below = ((quantiles <= levels[..., None]).sum(axis=-1) - 1).clip(0, len(_GRID) - 2)[..., None]
    low, high = (np.take_along_axis(quantiles, below + step, axis=-1)[..., 0] for step in (0, 1))
    start, end = _GRID[below[..., 0]], _GRID[below[..., 0] + 1]
    return np.asarray(((end - start) / (high - low) * (levels - low) + start).clip(_GRID[0], _GRID[-1]))


_OWN_QUANTILES = _quantiles(_OWN_PART)
_LONE_PRIOR = _probabilities(-((_GRID / MACHINE_SD) ** 2) / 2) @ _OWN_PART
