"""Which candidate leads, and how surely: plausible true utilities of all contenders, given what was measured.

A process p of candidate c of engine e, run in round k, measures the utility

    y_p = u_c + b_k + e_p    with   u_c ~ N(m_e, s²),   b_k ~ N(0, v),   e_p ~ N(0, v_c + w_p)

In words: the candidate's true utility u_c, which lies around the mean m_e of its engine; what all processes of the
confirming round have in common, b_k (0 in the search, whose processes are no round); and the process's own noise e_p.
Its variance is v_c, by which processes of this candidate differ, plus w_p, which comes of the few runs within the
process. v is the v_c of an ordinary candidate of an ordinary engine.

v and v_c are drawn from what is believed of them (`noise.process_variances`). m_e is fitted to the measurements, and s
is drawn from what is believed beforehand and what they show of it, which takes back the luck of those that were
measured best of many, and leaves two candidates as far apart as they may be. Given these, u and b are normal, and are
drawn from their joint posterior.

With several engines each m_e is drawn as well. One that rests on few candidates is hardly known, so the only candidate
of an engine is believed to be as good as it measured. With a single engine, m is what fits best.

Source: Gelman et al. 2013, "Bayesian Data Analysis", third edition, sections 5.4 and 5.5 (normal hierarchical model).
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np

from kvray.analysis.evidence import SEARCH_ROUND, Array, Evidence, Flags
from kvray.analysis.intervals import Interval
from kvray.analysis.noise import EQUALLY_LIKELY, normal_shares, process_variances, typical_variance

TIE_SHARE = 0.05
NEAR = math.log(1.02)
"""In utility: 2 % is what nobody would change a configuration for."""
SPREAD = 1.5
"""Standard deviation s between candidates over that between fresh processes of one (`noise.PROCESS_SD`), which is as
likely too high as too low before anything is measured. In recorded sweeps and in the landscapes of
`benchmarks/calibration.py` it is a third of that process deviation to seven times as much."""
SPREAD_SD = 1.0
"""Standard deviation of the logarithm of s, beforehand."""
_SPREADS = np.exp(np.arange(-4.0, 4.01, 0.1))
"""Standard deviations s that are weighed, over the one that is most likely beforehand."""

_NORMAL = NormalDist()
_ALL_DRAWN = 1000
"""Candidates, beyond which those that cannot lead are not drawn."""
_CANNOT_LEAD = 4.0
"""Standard deviations by which a candidate's best is below another's worst: of ten million draws of such a pair less
than one has the wrong order."""
_TINY = 1e-12
_ROWS_AT_ONCE = 512
"""Candidates whose draws are copied at a time."""


@dataclass(frozen=True, kw_only=True)
class Behind:
    """What is believed of candidates that cannot lead. Given the noise their true utilities are normal.

    Attributes:
        ids: the candidates.
        means, deviations: draws of the noise × candidates.
    """

    ids: tuple[str, ...]
    means: Array
    deviations: Array

    @cached_property
    def place_of(self) -> Mapping[str, int]:
        """By id, the candidate's column."""
        return {key: place for place, key in enumerate(self.ids)}


_NOBODY = Behind(ids=(), means=np.zeros((1, 0)), deviations=np.zeros((1, 0)))


@dataclass(frozen=True, kw_only=True)
class UtilityPosterior:
    """Draws from the posterior of the true utilities.

    Attributes:
        ids: the contenders.
        utilities: contenders × draws, without those in `behind`.
        behind: those of many that cannot lead.
    """

    ids: tuple[str, ...]
    utilities: Array
    behind: Behind = _NOBODY

    @cached_property
    def leader(self) -> str:
        """The best on average."""
        return max(self.ids, key=lambda key: self.means[key])

    @cached_property
    def _place_of(self) -> Mapping[str, int]:
        return {key: place for place, key in enumerate(self._drawn)}

    @cached_property
    def _drawn(self) -> tuple[str, ...]:
        return tuple(key for key in self.ids if key not in self.behind.place_of)

    @cached_property
    def lead_shares(self) -> dict[str, float]:
        """Share of the draws in which each is the best."""
        leaders = np.bincount(np.argmax(self.utilities, axis=0), minlength=len(self._drawn))
        shares = dict(zip(self._drawn, (leaders / self.utilities.shape[1]).tolist(), strict=True))
        return {key: shares.get(key, 0.0) for key in self.ids}

    @cached_property
    def means(self) -> dict[str, float]:
        """Expected utilities: nearer to each other than the measured ones, of which the highest were also lucky."""
        drawn = dict(zip(self._drawn, self.utilities.mean(axis=1).tolist(), strict=True))
        return drawn | dict(zip(self.behind.ids, self.behind.means.mean(axis=0).tolist(), strict=True))

    def near_share(self, candidate_id: str) -> float:
        """Share of the draws in which nothing is better than it by more than 2 %."""
        if candidate_id in self.behind.place_of:
            return 1.0 - self.worse_share(candidate_id, self.leader)
        behind = self.utilities.max(axis=0) - self.utilities[self._place_of[candidate_id]]
        return float((behind <= NEAR).mean())

    def worse_share(self, candidate_id: str, than: str) -> float:
        """Share of the draws in which it is more than 2 % worse than another."""
        if candidate_id in self.behind.place_of:
            return 1.0 - float(self._shares_ahead(than, -NEAR)[self.behind.place_of[candidate_id]])
        if than in self.behind.place_of:
            return float(self._shares_ahead(candidate_id, NEAR)[self.behind.place_of[than]])
        behind = self.utilities[self._place_of[than]] - self.utilities[self._place_of[candidate_id]]
        return float((behind > NEAR).mean())

    def better_share(self, candidate_id: str, than: str) -> float:
        """Share of the draws in which it is better than another."""
        if candidate_id in self.behind.place_of:
            return float(self._shares_ahead(than, 0.0)[self.behind.place_of[candidate_id]])
        if than in self.behind.place_of:
            return 1.0 - float(self._shares_ahead(candidate_id, 0.0)[self.behind.place_of[than]])
        return float((self.utilities[self._place_of[candidate_id]] > self.utilities[self._place_of[than]]).mean())

    def score_ratios(self, to: str) -> dict[str, Interval]:
        """By candidate id, the 95 % interval of its score as a multiple of that of `to`."""
        if to in self.behind.place_of:
            return {key: self._ratio(key, to) for key in self.ids}
        found = {key: self._ratio(key, to) for key in self.behind.ids}
        for first in range(0, len(self._drawn), _ROWS_AT_ONCE):
            ahead = self.utilities[first : first + _ROWS_AT_ONCE] - self.utilities[self._place_of[to]]
            lows, highs = np.exp(np.quantile(ahead, (0.025, 0.975), axis=1)).tolist()
            values = np.exp(ahead.mean(axis=1)).tolist()
            intervals = map(lambda value, low, high: Interval(value=value, low=low, high=high), values, lows, highs)
            found |= zip(self._drawn[first : first + _ROWS_AT_ONCE], intervals, strict=True)
        return {key: found[key] for key in self.ids}

    def ties(self, candidate_id: str) -> tuple[str, ...]:
        """Candidates that cannot be told apart from it because they may be the best too, the likeliest first."""
        shares = self.lead_shares
        rivals = [key for key in self.ids if key != candidate_id and shares[key] > TIE_SHARE]
        return tuple(sorted(rivals, key=lambda key: -shares[key]))

    def _shares_ahead(self, of: str, by: float) -> Array:
        """How probable it is of each that is `behind` that it is better than another `by` so much."""
        if (of, by) not in self._known_shares:
            means, deviations = self._moments(of)
            ahead = self.behind.means[: len(means)] - means[:, None] - by
            spreads = np.hypot(self.behind.deviations[: len(means)], deviations[:, None])
            self._known_shares[of, by] = normal_shares(ahead / np.maximum(spreads, _TINY)).mean(axis=0)
        return self._known_shares[of, by]

    @cached_property
    def _known_shares(self) -> dict[tuple[str, float], Array]:
        return {}

    def _moments(self, candidate_id: str) -> tuple[Array, Array]:
        """Mean and standard deviation of a candidate's utility for each draw of the noise."""
        if (place := self.behind.place_of.get(candidate_id)) is not None:
            return self.behind.means[:, place], self.behind.deviations[:, place]
        row = self.utilities[self._place_of[candidate_id]]
        parts = np.split(row, range(draws_each(len(row)), len(row), draws_each(len(row))))
        return np.array([one.mean() for one in parts]), np.array([one.std() for one in parts])

    def _ratio(self, candidate_id: str, to: str) -> Interval:
        """The 95 % interval of a score as a multiple of another, one of which at least is `behind`: as if normal."""
        value = self.means[candidate_id] - self.means[to]
        half_width = 1.96 * math.hypot(self._deviation(candidate_id), self._deviation(to))
        return Interval(value=math.exp(value), low=math.exp(value - half_width), high=math.exp(value + half_width))

    def _deviation(self, candidate_id: str) -> float:
        if (place := self.behind.place_of.get(candidate_id)) is not None:
            return self._behind_deviations[place]
        if candidate_id not in self._known_deviations:
            self._known_deviations[candidate_id] = float(self.utilities[self._place_of[candidate_id]].std())
        return self._known_deviations[candidate_id]

    @cached_property
    def _behind_deviations(self) -> list[float]:
        variances = (self.behind.deviations**2).mean(axis=0) + self.behind.means.var(axis=0)
        deviations: list[float] = np.sqrt(variances).tolist()
        return deviations

    @cached_property
    def _known_deviations(self) -> dict[str, float]:
        return {}


def draws_each(draws: int) -> int:
    """How many of all `draws` are made for each draw of the noise: an even number, for `_mirrored`."""
    return 2 * math.ceil(draws / (2 * EQUALLY_LIKELY))


def draw_utilities(
    evidence: Evidence, ids: Sequence[str], weights: Array, *, seed: int, draws: int, always: Container[str] = ()
) -> UtilityPosterior:
    """The posterior of `ids`, none of which may be without a process; the module has the model.

    Args:
        weights: of the logarithms of TTFT, throughput and peak in the utility, with their signs.
        always: ids that are drawn also where they cannot lead, because others are compared with them.
    """
    own = evidence.restricted(ids)
    variances = process_variances(evidence, weights)
    rows = np.array([evidence.place_of[key] for key in own.ids])[own.owner]
    values, within = own.logs @ weights, own.within @ weights**2
    generator = np.random.default_rng(seed)
    each = draws_each(draws)
    expected = SPREAD**2 * typical_variance(weights)
    noises = [within + one[rows] for one in variances.own]
    populations = [
        _population(own, values, noise, expected, level) for noise, level in zip(noises, _levels(own), strict=True)
    ]
    behind = _NOBODY if len(own.ids) <= _ALL_DRAWN else _behind(own, values, noises, populations, always)
    drawn_ids = own.restricted(set(own.ids) - set(behind.ids)) if behind.ids else own
    places = np.array([own.place_of[key] for key in drawn_ids.ids])
    its = np.isin(own.owner, places)
    utilities = np.empty((len(drawn_ids.ids), draws))
    for number, (machine, noise, (means, spread)) in enumerate(
        zip(variances.machine, noises, populations, strict=True)
    ):
        population = means[places], spread
        drawn = _draw(drawn_ids, values[its], noise[its], float(machine), population, each, generator)
        begin = number * each
        utilities[:, begin : begin + each] = drawn[:, : draws - begin] if begin < draws else drawn[:, :0]
    return UtilityPosterior(ids=own.ids, utilities=utilities, behind=behind)


def _behind(
    evidence: Evidence,
    values: Array,
    noises: Sequence[Array],
    populations: Sequence[tuple[Array, float]],
    always: Container[str],
) -> Behind:
    """Those that cannot lead, whatever the noise is. Without a confirming round they are independent of each other,
    and those that took part in one are few: they are always drawn."""
    count = len(evidence.ids)
    moments = []
    for noise, (means, spread) in zip(noises, populations, strict=True):
        precision = 1 / spread + np.bincount(evidence.owner, 1 / noise, count)
        pull = means / spread + np.bincount(evidence.owner, values / noise, count)
        moments.append((pull / precision, 1 / np.sqrt(precision)))
    means, deviations = (np.array(one) for one in zip(*moments, strict=True))
    best, worst = means + _CANNOT_LEAD * deviations, means - _CANNOT_LEAD * deviations
    is_behind = (best < worst.max(axis=1, keepdims=True)).all(axis=0)
    is_behind[evidence.owner[evidence.rounds != SEARCH_ROUND]] = False
    is_behind[[evidence.place_of[key] for key in evidence.ids if key in always]] = False
    ids = tuple(key for key, its in zip(evidence.ids, is_behind.tolist(), strict=True) if its)
    return Behind(ids=ids, means=means[:, is_behind], deviations=deviations[:, is_behind])


def _draw(
    evidence: Evidence,
    values: Array,
    variances: Array,
    typical: float,
    population: tuple[Array, float],
    draws: int,
    generator: np.random.Generator,
) -> Array:
    """Candidates × `draws`: first the rounds' effects, then the utilities given those. Both are normal.

    With weight a_p = 1 / (v_c + w_p) and P_c = 1/s² + Σ a_p over the processes of c, the utility given all b is

        u_c ~ N((m_e/s² + Σ a_p (y_p − b_k)) / P_c, 1 / P_c)

    Averaged over u, the vector b is normal with the inverse covariance

        J_kl = [k = l] (1/v + Σ_{p in k} a_p) − Σ_c S_ck S_cl / P_c    with   S_ck = Σ a_p over the processes of c in k

    and the mean J⁻¹ h, where h_k = Σ_{p in k} a_p y_p − Σ_c S_ck (m_e/s² + Σ a_p y_p) / P_c.

    Args:
        variances: v_c + w_p of every process.
        typical: v.
        population: m_e of every candidate's engine, and s².
    """
    owner, count, weights = evidence.owner, len(evidence.ids), 1 / variances
    mean, spread = population
    precision = 1 / spread + np.bincount(owner, weights, count)
    pull = mean / spread + np.bincount(owner, weights * values, count)
    noise = _mirrored(count, draws, generator) / np.sqrt(precision)[:, None]
    in_round = evidence.rounds[:, None] == np.unique(evidence.rounds[evidence.rounds != SEARCH_ROUND])
    if not in_round.shape[1]:
        return np.asarray((pull / precision)[:, None] + noise)
    shared = np.stack([np.bincount(owner, weights * is_member, count) for is_member in in_round.T], axis=1)
    information = np.diag(weights @ in_round + 1 / typical) - shared.T @ (shared / precision[:, None])
    covariance = np.linalg.inv(information)
    effects = covariance @ ((weights * values) @ in_round - shared.T @ (pull / precision))
    rounds = effects[:, None] + np.linalg.cholesky(covariance) @ _mirrored(len(effects), draws, generator)
    return np.asarray((pull[:, None] - shared @ rounds) / precision[:, None] + noise)


def _mirrored(rows: int, draws: int, generator: np.random.Generator) -> Array:
    """Standard normal numbers, rows × `draws` (an even number).

    Each comes with its negative, so that means are not left to chance where two candidates hardly differ.
    """
    half = generator.standard_normal((rows, draws // 2))
    return np.concatenate([half, -half], axis=1)


def _levels(evidence: Evidence) -> Array:
    """For each draw of the noise, the quantile of s and that of each engine's m_e."""
    levels, generator = (np.arange(EQUALLY_LIKELY) + 0.5) / EQUALLY_LIKELY, np.random.default_rng(0)
    return np.stack([generator.permutation(levels) for _ in range(2 + evidence.engine_of.max())], axis=1)


def _population(
    evidence: Evidence, values: Array, variances: Array, expected: float, levels: Array
) -> tuple[Array, float]:
    """Mean m_e of every candidate's engine, and variance s² of the true utilities around it.

    They rest on the search alone: it confirms good candidates, not any. With precision a_p(s) = 1 / (s² + v_c + w_p)
    and m̂_e the mean of an engine's values weighted by it, what is believed of s is

        log p(s) = −(log(s / ŝ) / SPREAD_SD)² / 2 + Σ_e [Σ log(a_p) − log(Σ a_p) − Σ a_p (y_p − m̂_e)²] / 2

    up to a constant: the prior times the likelihood with all m_e integrated out (Gelman et al., equation 5.21).

    Args:
        expected: ŝ², beforehand.
        levels: which quantiles of the beliefs about s and each m_e are taken.
    """
    spreads = expected * _SPREADS**2
    fits = [_Engine.of(values[rows], variances[rows], spreads) for rows in _searched(evidence)]
    logs = -((np.log(_SPREADS) / SPREAD_SD) ** 2) / 2 + sum(one.logs for one in fits) / 2
    mass = np.exp(logs - logs.max())
    place = int(np.searchsorted(np.cumsum(mass) / mass.sum(), levels[0]))
    means = np.array([one.means[place] for one in fits])
    if len(fits) > 1:
        errors = np.sqrt([1 / one.precision[place] for one in fits])
        means += errors * [_NORMAL.inv_cdf(level) for level in levels[1:]]
    return means[evidence.engine_of], float(spreads[place])


@dataclass(frozen=True, kw_only=True)
class _Engine:
    """What the processes of one engine tell, for each spread between candidates.

    Attributes:
        means: m̂_e.
        precision: of m̂_e.
        logs: twice the logarithm of their likelihood.
    """

    means: Array
    precision: Array
    logs: Array

    @classmethod
    def of(cls, values: Array, variances: Array, spreads: Array) -> _Engine:
        precision = 1 / (spreads[:, None] + variances)
        total = precision.sum(axis=1)
        means = precision @ values / total
        misfit = (precision * (values - means[:, None]) ** 2).sum(axis=1)
        return cls(means=means, precision=total, logs=np.log(precision).sum(axis=1) - np.log(total) - misfit)


def _searched(evidence: Evidence) -> list[Flags]:
    """For each engine, its processes that the search started; all that it has where those are fewer than two."""
    engines, is_searched = evidence.engine_of[evidence.owner], evidence.rounds == SEARCH_ROUND
    every = [engines == engine for engine in range(evidence.engine_of.max() + 1)]
    return [its & is_searched if (its & is_searched).sum() > 1 else its for its in every]
