"""Simulated sweeps of two engines, of which one is quiet and one noisy, for `calibration.py`.

Between processes the quiet engine's TTFT varies by about 1 %, the noisy one's by about 6 %, and between the runs of one
process by about 0.5 % and 4 %. Either may be ahead, both may be as good, or one of them may have a single candidate.
How much runs differ is known from the repeats of each engine's default alone; in three of ten sweeps one engine has
none.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from claims import BASELINE, Outcome, bins, judge, share, swept, worst_gap
from output import Figure, print_table
from simulated_sweeps import METRIC_SIZES, SEARCH_RUNS, SHAPES, Array, Generator, Indices, Machine

from kvray.analysis.engine_noise import run_variances
from kvray.analysis.evidence import DECODE, SEARCH_ROUND, TTFT, Evidence
from kvray.analysis.intervals import gain_intervals, metric_interval
from kvray.analysis.score import utility_weights
from kvray.analysis.utility_posterior import draw_utilities
from kvray.workload import get_profile, list_profiles

QUIET, NOISY = range(2)
NAMES = ("quiet", "noisy")
MIXED = "mixed"
PROCESS = {QUIET: (0.007, 0.013), NOISY: (0.045, 0.075)}
"""Range of the standard deviation of TTFT between processes, by engine."""
RUN = {QUIET: (0.35, 0.65), NOISY: (0.5, 0.8)}
"""The same between runs of a process, over that."""
WITHOUT_REPEATS = 0.3
LOOKED_AT = 4
"""Candidates of a sweep whose own intervals are checked."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """One kind of sweep.

    Attributes:
        ahead: by how much the quiet engine's best is better than the noisy one's, in utility.
        lone: the engine that has one candidate only.
    """

    ahead: Callable[[Generator], float]
    lone: int | None = None


GROUPS: Mapping[str, Group] = {
    "quiet ahead": Group(ahead=lambda generator: generator.uniform(0.01, 0.3)),
    "noisy ahead": Group(ahead=lambda generator: -generator.uniform(0.01, 0.3)),
    "near ties": Group(ahead=lambda generator: generator.normal(0, 0.01)),
    "lone quiet": Group(ahead=lambda generator: generator.normal(0, 0.05), lone=QUIET),
    "lone noisy": Group(ahead=lambda generator: generator.normal(0, 0.05), lone=NOISY),
}


@dataclass(frozen=True, kw_only=True)
class EnginesOutcome:
    """What a sweep of two engines claimed, and what is true.

    Attributes:
        gains: whether the interval of a gain holds the true one, by whose processes it rests on: both of the quiet
            engine, both of the noisy one, or one of each.
        values: the same of TTFT and throughput as such, by engine.
        ratio: the same of the chosen one's score over that of the other engine's first candidate.
    """

    outcome: Outcome
    gains: tuple[tuple[str, bool], ...]
    values: tuple[tuple[str, bool], ...]
    ratio: bool


def engines_outcomes(sweeps: int, *, seed: int, pooled: bool) -> list[EnginesOutcome]:
    """`sweeps` of each kind; `pooled` is as in `simulate_engines`."""
    outcomes = []
    for number, name in enumerate(GROUPS):
        generator = np.random.default_rng([seed, 100 + number])
        outcomes += [simulate_engines(name, generator, pooled=pooled) for _ in range(sweeps)]
        print(f"two engines, {name}: {sweeps} sweeps", file=sys.stderr)
    return outcomes


def engines_figures(outcomes: Sequence[EnginesOutcome]) -> dict[str, Figure]:
    """For JSON: over all sweeps, and for each kind."""
    found = bins([(one.outcome.claimed, one.outcome.is_best) for one in outcomes])
    figures: dict[str, Figure] = {
        "engines_sweeps": len(outcomes),
        "engines_bins": [one.figures() for one in found],
        "engines_worst_gap": worst_gap(found),
        **{f"engines_gain_coverage_{kind}": _held(outcomes, "gains", kind) for kind in (*NAMES, MIXED)},
        "engines_gain_coverage": _held(outcomes, "gains"),
        **{f"engines_value_coverage_{kind}": _held(outcomes, "values", kind) for kind in NAMES},
        "engines_value_coverage": _held(outcomes, "values"),
        "engines_score_ratio_coverage": share([one.ratio for one in outcomes]),
    }
    for name in GROUPS:
        its, prefix = _of(outcomes, name), f"engines_{name.replace(' ', '_')}"
        figures |= {f"{prefix}_{key}": value for key, value in _row(its).items()}
    return figures


def report_engines(outcomes: Sequence[EnginesOutcome]) -> None:
    """The tables for people."""
    found = bins([(one.outcome.claimed, one.outcome.is_best) for one in outcomes])
    print_table(
        f"{len(outcomes):,} simulated sweeps of a quiet and a noisy engine: the chosen candidate is the best",
        ("claimed", "right", "gap", "sweeps"),
        [(one.claimed, one.right, one.right - one.claimed, one.n) for one in found],
    )
    rows = {name: _row(_of(outcomes, name)) for name in GROUPS}
    print_table(
        "By kind of sweep; 95 % intervals that hold the truth",
        ("kind", *(key.replace("_", " ") for key in next(iter(rows.values())))),
        [(name, *row.values()) for name, row in rows.items()],
    )
    print_table(
        "95 % intervals that hold the truth, by engine",
        ("engine", "gains", "TTFT and tok/s"),
        [
            *((name, _held(outcomes, "gains", name), _held(outcomes, "values", name)) for name in NAMES),
            (MIXED, _held(outcomes, "gains", MIXED), ""),
            ("all", _held(outcomes, "gains"), _held(outcomes, "values")),
        ],
    )


def _row(outcomes: Sequence[EnginesOutcome]) -> dict[str, float]:
    claims = [(one.outcome.claimed, one.outcome.is_best) for one in outcomes]
    return {
        "claimed": float(np.mean([claim for claim, _ in claims])),
        "right": share([right for _, right in claims]),
        "worst_gap": worst_gap(bins(claims)),
        "near_claimed": float(np.mean([one.outcome.claimed_near for one in outcomes])),
        "near_right": share([one.outcome.is_near for one in outcomes]),
        "gain_coverage": _held(outcomes, "gains"),
        "value_coverage": _held(outcomes, "values"),
        "score_ratio_coverage": share([one.ratio for one in outcomes]),
        "rounds": float(np.mean([one.outcome.rounds for one in outcomes])),
    }


def _of(outcomes: Sequence[EnginesOutcome], name: str) -> list[EnginesOutcome]:
    return [one for one in outcomes if one.outcome.shape == name]


def _held(outcomes: Sequence[EnginesOutcome], which: str, kind: str | None = None) -> float:
    """Share of the `gains` or `values` whose interval holds the truth, of one kind or of all."""
    return share([held for one in outcomes for label, held in getattr(one, which) if kind in (None, label)])


def simulate_engines(name: str, generator: Generator, *, pooled: bool = False) -> EnginesOutcome:
    """One sweep.

    Args:
        pooled: take all candidates for those of one engine, as if noise were a machine's and not an engine's.
    """
    engines = _engines(GROUPS[name], generator)
    weights = utility_weights(get_profile(generator.choice(list_profiles())))
    truth = _truth(engines, weights, GROUPS[name].ahead(generator), generator)
    machine = _machine(engines, generator, pooled=pooled)
    evidence, rounds = swept(machine, truth, weights, generator)
    outcome = judge(name, evidence, truth, weights, rounds, generator)
    return EnginesOutcome(
        outcome=outcome,
        gains=tuple(_gains(evidence, truth, engines)),
        values=tuple(_values(evidence, truth, engines, generator)),
        ratio=_is_ratio_covered(evidence, truth, weights, engines, outcome),
    )


def _engines(group: Group, generator: Generator) -> Indices:
    """The engine of each of 8 to 100 candidates."""
    count = round(math.exp(generator.uniform(math.log(8), math.log(100))))
    if group.lone is None:
        quiet = round(count * generator.uniform(0.2, 0.8))
        return generator.permutation(np.repeat([QUIET, NOISY], [quiet, count - quiet]))
    engines = np.full(count, NOISY if group.lone == QUIET else QUIET)
    engines[generator.integers(count)] = group.lone
    return engines


def _truth(engines: Indices, weights: Array, ahead: float, generator: Generator) -> Array:
    """Candidates × metrics."""
    shape = SHAPES[generator.choice(list(SHAPES))]
    size = math.exp(generator.uniform(math.log(0.02), math.log(0.3)))
    truth = shape(len(engines), generator) * size * METRIC_SIZES
    utilities = truth @ weights
    lead = utilities[engines == QUIET].max() - utilities[engines == NOISY].max()
    truth[engines == QUIET] += (ahead - lead) * weights / (weights @ weights)
    return np.asarray(truth)


def _machine(engines: Indices, generator: Generator, *, pooled: bool) -> Machine:
    any_machine = Machine.any(generator)
    metrics = any_machine.process[0] / any_machine.process[0, TTFT]
    process = np.array([generator.uniform(*PROCESS[engine]) * metrics for engine in (QUIET, NOISY)])
    run = np.array([generator.uniform(*RUN[engine]) for engine in (QUIET, NOISY)])[:, None] * process
    freedom = np.full(2, any_machine.cells * (SEARCH_RUNS - 1.0))
    if generator.random() < WITHOUT_REPEATS:
        freedom[1 - engines[int(BASELINE)]] = 0
    squares = run**2 * np.where(freedom > 0, generator.chisquare(freedom.clip(1)), 0.0)[:, None]
    if pooled:
        squares, freedom = squares.sum(axis=0, keepdims=True), freedom.sum(keepdims=True)
    believed = np.sqrt(run_variances(squares, freedom))
    return replace(
        any_machine,
        process=process,
        run=run,
        engines=tuple(engines.tolist()),
        believed_run=np.repeat(believed, 2, axis=0) if pooled else believed,
        is_pooled=pooled,
    )


def _gains(evidence: Evidence, truth: Array, engines: Indices) -> Iterator[tuple[str, bool]]:
    """Figures of all that were confirmed."""
    base, confirmed = int(BASELINE), np.unique(evidence.owner[evidence.rounds != SEARCH_ROUND]).tolist()
    metrics = (TTFT, DECODE)
    found = gain_intervals(evidence, [str(one) for one in confirmed], BASELINE, metrics)
    for metric, intervals in zip(metrics, found, strict=True):
        for key, stated in intervals.items():
            if key != BASELINE:
                true = truth[int(key), metric] - truth[base, metric]
                kind = NAMES[engines[base]] if engines[int(key)] == engines[base] else MIXED
                yield kind, bool(abs(true - stated.value) <= stated.half_width)


def _values(evidence: Evidence, truth: Array, engines: Indices, generator: Generator) -> Iterator[tuple[str, bool]]:
    """Figures of a few that nobody has chosen for being good."""
    for place in generator.choice(len(engines), LOOKED_AT, replace=False).tolist():
        for metric in (TTFT, DECODE):
            stated = metric_interval(evidence, str(place), metric)
            yield NAMES[engines[place]], bool(abs(truth[place, metric] - stated.value) <= stated.half_width)


def _is_ratio_covered(evidence: Evidence, truth: Array, weights: Array, engines: Indices, outcome: Outcome) -> bool:
    other = int(np.flatnonzero(engines != engines[outcome.chosen])[0])
    posterior = draw_utilities(evidence, evidence.ids, weights, seed=0, draws=2000)
    ratio, utilities = posterior.score_ratios(str(other))[str(outcome.chosen)], truth @ weights
    return ratio.low <= math.exp(utilities[outcome.chosen] - utilities[other]) <= ratio.high
