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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import NormalDist

import numpy as np

from kvray.analysis.evidence import SEARCH_ROUND, Array, Evidence, Flags, Indices
from kvray.analysis.in_threads import computed_ahead
from kvray.analysis.intervals import Interval
from kvray.analysis.noise import EQUALLY_LIKELY, process_variances, typical_variance
from kvray.lazy import FoundLater

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


@dataclass(frozen=True, kw_only=True)
class UtilityPosterior:
    """Draws from the posterior of the true utilities.

    Attributes:
        ids: the contenders.
        utilities: draws × contenders.
    """

    ids: tuple[str, ...]
    utilities: Array

    @cached_property
    def leader(self) -> str:
        """The best on average."""
        return max(self.ids, key=lambda key: self.means[key])

    @cached_property
    def _place_of(self) -> Mapping[str, int]:
        return {key: place for place, key in enumerate(self.ids)}

    def _drawn(self, candidate_id: str) -> Array:
        return self.utilities[:, self._place_of[candidate_id]]

    @cached_property
    def _best(self) -> tuple[Array, Indices]:
        """The best utility of each draw, and the place of the first who has it."""
        leaders = self.utilities.argmax(axis=1)
        return self.utilities[np.arange(len(leaders)), leaders], leaders

    @cached_property
    def lead_shares(self) -> dict[str, float]:
        """Share of the draws in which each is the best."""
        leads = np.bincount(self._best[1], minlength=len(self.ids))
        return dict(zip(self.ids, (leads / len(self.utilities)).tolist(), strict=True))

    @cached_property
    def means(self) -> dict[str, float]:
        """Expected utilities: nearer to each other than the measured ones, of which the highest were also lucky."""
        return dict(zip(self.ids, self.utilities.mean(axis=0).tolist(), strict=True))

    def near_share(self, candidate_id: str) -> float:
        """Share of the draws in which nothing is better than it by more than 2 %."""
        behind = self._best[0] - self._drawn(candidate_id)
        return float((behind <= NEAR).mean())

    def worse_share(self, candidate_id: str, than: str) -> float:
        """Share of the draws in which it is more than 2 % worse than another."""
        behind = self._drawn(than) - self._drawn(candidate_id)
        return float((behind > NEAR).mean())

    def better_share(self, candidate_id: str, than: str) -> float:
        """Share of the draws in which it is better than another."""
        return float((self._drawn(candidate_id) > self._drawn(than)).mean())

    def score_ratios(self, to: str) -> Mapping[str, Interval]:
        """By candidate id, the 95 % interval of its score as a multiple of that of `to`; found when asked for."""
        return FoundLater(self.ids, partial(self._score_ratio, to))

    def _score_ratio(self, to: str, candidate_id: str) -> Interval:
        ahead = self._drawn(candidate_id) - self._drawn(to)
        low, high = np.exp(np.quantile(ahead, (0.025, 0.975))).tolist()
        return Interval(value=float(np.exp(ahead.mean())), low=low, high=high)

    def ties(self, candidate_id: str) -> tuple[str, ...]:
        """Candidates that cannot be told apart from it because they may be the best too, the likeliest first."""
        shares = self.lead_shares
        rivals = [key for key in self.ids if key != candidate_id and shares[key] > TIE_SHARE]
        return tuple(sorted(rivals, key=lambda key: -shares[key]))


def draw_utilities(
    evidence: Evidence, ids: Sequence[str], weights: Array, *, seed: int, draws: int
) -> UtilityPosterior:
    """The posterior of `ids`, none of which may be without a process; the module has the model.

    Args:
        weights: of the logarithms of TTFT, throughput and peak in the utility, with their signs.
    """
    own = evidence.restricted(ids)
    variances = process_variances(evidence, weights)
    rows = np.array([evidence.place_of[key] for key in own.ids])[own.owner]
    values, within = own.logs @ weights, own.within @ weights**2
    noises = len(variances.machine)
    each = 2 * math.ceil(draws / (2 * noises))  # an even number: half of them mirror the others
    expected = SPREAD**2 * typical_variance(weights)
    levels, generators = _levels(own), np.random.default_rng(seed).spawn(noises)
    utilities = np.empty((each * noises, len(own.ids)))  # ten thousand candidates take 160 MB: no copy

    def draw(number: int) -> Array:
        each_process = within + variances.own[number][rows]
        population = _population(own, values, each_process, expected, levels[number])
        drawn, typical = utilities[number * each : (number + 1) * each], float(variances.machine[number])
        _draw(drawn, own, values, each_process, typical, population, generators[number])
        return drawn

    for _ in computed_ahead(draw, range(noises), rows=len(rows)):
        pass  # each is drawn where it belongs
    return UtilityPosterior(ids=own.ids, utilities=utilities[:draws])


def _draw(
    drawn: Array,
    evidence: Evidence,
    values: Array,
    variances: Array,
    typical: float,
    population: tuple[Array, float],
    generator: np.random.Generator,
) -> None:
    """Fill `drawn`, draws × candidates: first the rounds' effects, then the utilities given those. Both are normal.

    With weight a_p = 1 / (v_c + w_p) and P_c = 1/s² + Σ a_p over the processes of c, the utility given all b is

        u_c ~ N((m_e/s² + Σ a_p (y_p − b_k)) / P_c, 1 / P_c)

    Averaged over u, the vector b is normal with the inverse covariance

        J_kl = [k = l] (1/v + Σ_{p in k} a_p) − Σ_c S_ck S_cl / P_c    with   S_ck = Σ a_p over the processes of c in k

    and the mean J⁻¹ h, where h_k = Σ_{p in k} a_p y_p − Σ_c S_ck (m_e/s² + Σ a_p y_p) / P_c.

    Every normal number is used with its negative too, so that means are not left to chance where two candidates hardly
    differ.

    Args:
        variances: v_c + w_p of every process.
        typical: v.
        population: m_e of every candidate's engine, and s².
    """
    owner, count, weights = evidence.owner, len(evidence.ids), 1 / variances
    mean, spread = population
    precision = 1 / spread + np.bincount(owner, weights, count)
    pull = mean / spread + np.bincount(owner, weights * values, count)
    half = len(drawn) // 2
    noise = generator.standard_normal((half, count)) / np.sqrt(precision)
    in_round = evidence.rounds[:, None] == np.unique(evidence.rounds[evidence.rounds != SEARCH_ROUND])
    if not in_round.shape[1]:
        centres = np.broadcast_to(pull / precision, drawn.shape)
    else:
        shared = np.stack([np.bincount(owner, weights * is_member, count) for is_member in in_round.T], axis=1)
        information = np.diag(weights @ in_round + 1 / typical) - shared.T @ (shared / precision[:, None])
        covariance = np.linalg.inv(information)
        effects = covariance @ ((weights * values) @ in_round - shared.T @ (pull / precision))
        normal = generator.standard_normal((half, len(effects)))
        rounds = effects + np.concatenate([normal, -normal]) @ np.linalg.cholesky(covariance).T
        centres = (pull - rounds @ shared.T) / precision
    np.add(centres[:half], noise, out=drawn[:half])
    np.subtract(centres[half:], noise, out=drawn[half:])


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
        """Processes of the same variance count as one: of thousands of processes only some tens differ."""
        unlike, member = np.unique(variances, return_inverse=True)
        counts = np.bincount(member).astype(np.float64)
        centres = np.bincount(member, values) / counts
        squares = np.bincount(member, (values - centres[member]) ** 2)
        precision = 1 / (spreads[:, None] + unlike)
        total = precision @ counts
        means = precision @ (counts * centres) / total
        misfit = (precision * (squares + counts * (centres - means[:, None]) ** 2)).sum(axis=1)
        return cls(means=means, precision=total, logs=np.log(precision) @ counts - np.log(total) - misfit)


def _searched(evidence: Evidence) -> list[Flags]:
    """For each engine, its processes that the search started; all that it has where those are fewer than two."""
    engines, is_searched = evidence.engine_of[evidence.owner], evidence.rounds == SEARCH_ROUND
    every = [engines == engine for engine in range(evidence.engine_of.max() + 1)]
    return [its & is_searched if (its & is_searched).sum() > 1 else its for its in every]
