"""Made-up sweeps with known truth for `calibration.py`: landscapes, the noise of machines, and what they measure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kvray.analysis.evidence import DECODE, METRICS, TTFT, Evidence

SEARCH_RUNS = 4
SLOWED = 0.05
SLOWDOWN = math.log(1.1), math.log(2.0)
NOTICED = 0.5
"""Share of the slowed processes that are marked as disturbed."""
METRIC_SIZES = np.array([1.0, 0.6, 0.5])
"""How far candidates spread in TTFT, throughput and peak, relative to TTFT."""

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Generator = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The noise of one sweep, as standard deviations of logarithms.

    Attributes:
        process: engines × metrics, between processes.
        run: engines × metrics, between the runs of one process.
        together: correlation between a process's TTFT and its throughput (a slow process is slow in both).
        heavy_tails: Student's t with four degrees of freedom instead of normal.
        drift: between rounds.
        slowed: share of processes that something else slows.
        engines: the number of each candidate's engine; empty where there is one engine.
        believed_run: what the evidence says of `run`, where that is not known exactly.
        is_pooled: whether the evidence says nothing of engines.
    """

    process: Array
    run: Array
    cells: int
    together: float
    heavy_tails: bool
    drift: float
    slowed: float
    engines: tuple[int, ...] = ()
    believed_run: Array | None = None
    is_pooled: bool = False

    @classmethod
    def any(cls, generator: Generator) -> Machine:
        """Drawn from what was seen, or is feared, in the field."""
        process = np.array([generator.uniform(0.02, 0.06), generator.uniform(0.01, 0.03), generator.uniform(0, 0.01)])
        return cls(
            process=process[None],
            run=process[None] * generator.uniform(0.3, 1.0),
            cells=int(generator.choice([1, 4, 9])),
            together=float(generator.choice([0.0, 0.5])),
            heavy_tails=bool(generator.random() < 0.3),
            drift=float(generator.choice([0.0, 0.02])),
            slowed=SLOWED if generator.random() < 0.3 else 0.0,
        )

    def measure(self, truth: Array, who: Indices, round_number: int, generator: Generator) -> Evidence:
        """One process of each of `who`."""
        runs = 1 if round_number else SEARCH_RUNS
        share = 1.0 if runs == 1 else math.pi / 2 / runs
        size, engine = len(who), np.array(self.engines or [0] * len(truth))[who]
        within = self.run[engine] ** 2 / self.cells * share
        believed = within if self.believed_run is None else self.believed_run[engine] ** 2 / self.cells * share
        drift = generator.normal(0, self.drift) * np.array([1.0, -1.0, 0.0]) if round_number else 0.0
        between = self._noise(self.process[engine], self.together, size, generator)
        slowed = generator.random(size) < self.slowed
        lost = slowed[:, None] * np.outer(generator.uniform(*SLOWDOWN, size), [1.0, -1.0, 0.0])
        return Evidence(
            ids=tuple(str(place) for place in range(len(truth))),
            contenders=frozenset(str(place) for place in range(len(truth))),
            owner=who,
            rounds=np.full(size, round_number),
            logs=truth[who] + between + self._noise(np.sqrt(within), 0.0, size, generator) + drift + lost,
            within=believed,
            disturbed=slowed & (generator.random(size) < NOTICED),
            engines=() if self.is_pooled else tuple(str(one) for one in self.engines),
        )

    def _noise(self, deviation: Array, together: float, size: int, generator: Generator) -> Array:
        normal = generator.standard_normal((size, len(METRICS)))
        normal[:, DECODE] = -together * normal[:, TTFT] + math.sqrt(1 - together**2) * normal[:, DECODE]
        if self.heavy_tails:
            normal *= np.sqrt(2 / generator.chisquare(4, size))[:, None]  # of variance 1 again
        return np.asarray(normal * deviation)


def joined(one: Evidence, other: Evidence) -> Evidence:
    """Both, of the same candidates."""
    return Evidence(
        ids=one.ids,
        contenders=one.contenders,
        owner=np.concatenate([one.owner, other.owner]),
        rounds=np.concatenate([one.rounds, other.rounds]),
        logs=np.concatenate([one.logs, other.logs]),
        within=np.concatenate([one.within, other.within]),
        disturbed=np.concatenate([one.disturbed, other.disturbed]),
        engines=one.engines,
    )


def calm(evidence: Evidence) -> Evidence:
    """Without the disturbed processes of candidates that have others, as `gather_evidence` leaves them out."""
    has_calm = np.isin(evidence.owner, evidence.owner[~evidence.disturbed])
    rows = ~(evidence.disturbed & has_calm)
    return replace(
        evidence,
        owner=evidence.owner[rows],
        rounds=evidence.rounds[rows],
        logs=evidence.logs[rows],
        within=evidence.within[rows],
        disturbed=evidence.disturbed[rows],
    )


def normal_shape(count: int, generator: Generator) -> Array:
    """Most in the middle."""
    return np.asarray(generator.standard_normal((count, len(METRICS))))


def crowded_shape(count: int, generator: Generator) -> Array:
    """Many near the best, few far below."""
    return np.asarray(generator.exponential(1.0, (count, len(METRICS))) * np.array([1.0, -1.0, 1.0]))


def axes_shape(count: int, generator: Generator) -> Array:
    """Main effects of four axes, some of which do nothing, and a small residual."""
    sizes = (5, 4, 2, 2)
    levels = generator.integers(0, sizes, (count, len(sizes)))
    logs = generator.normal(0, 0.15, (count, len(METRICS)))
    for axis, size in enumerate(sizes):
        effects = generator.standard_normal((size, len(METRICS))) * generator.choice([0.0, 0.5, 1.0], len(METRICS))
        logs += effects[levels[:, axis]]
    return np.asarray(logs)


def outlying_shape(count: int, generator: Generator) -> Array:
    """Some far better and far worse than the rest."""
    return np.asarray(0.6 * generator.standard_t(3, (count, len(METRICS))))


SHAPES: dict[str, Callable[[int, Generator], Array]] = {
    "normal": normal_shape,
    "crowded at the top": crowded_shape,
    "axes": axes_shape,
    "outlying": outlying_shape,
}
