"""Whether a confidence of 90 % is right nine times in ten: simulated sweeps whose true winner is known.

Each sweep has 8 to 100 candidates on a landscape of one of four shapes, weights of one of the built-in profiles, noise
between processes (TTFT 2-6 %, throughput 1-3 %) and between runs, tails heavier than normal in three of ten, and up to
three confirming rounds, of which each may run on a machine that has become slower or faster. In three of ten sweeps one
process in twenty is slowed by something else, and half of these are noticed (marked as disturbed). The measurements are
made up; everything from them to the claim is kvray's own code.

The width of the gains' intervals is compared with that of the plain t interval of the same pairs, which is what a
statistician would write down who knows nothing but the pairs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from output import make_parser, print_table, write_figures
from scipy import stats

from kvray.analysis.choice import choose
from kvray.analysis.confirming import next_round
from kvray.analysis.evidence import DECODE, METRICS, PEAK, TTFT, Evidence
from kvray.analysis.intervals import gain_interval, paired_rounds
from kvray.analysis.score import utility_weights
from kvray.analysis.utility_posterior import NEAR, draw_utilities
from kvray.workload import get_profile, list_profiles

BASELINE = "0"
BINS = 10
FEWEST_IN_A_BIN = 50
SEARCH_RUNS = 4
SLOWED = 0.05
SLOWDOWN = math.log(1.1), math.log(2.0)
NOTICED = 0.5
"""Share of the slowed processes that are marked as disturbed."""
METRIC_SIZES = np.array([1.0, 0.6, 0.5])
"""How far candidates spread in TTFT, throughput and peak, relative to TTFT."""

Array = npt.NDArray[np.float64]
Generator = np.random.Generator


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--sweeps", type=int, help="of each shape (default 2500; 100 with --quick)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sweeps = arguments.sweeps or (100 if arguments.quick else 2500)
    outcomes: list[Outcome] = []
    for shape in SHAPES:
        generator = np.random.default_rng([arguments.seed, list(SHAPES).index(shape)])
        outcomes += [simulate(shape, generator) for _ in range(sweeps)]
        print(f"{shape}: {sweeps} sweeps", file=sys.stderr)
    generator = np.random.default_rng([arguments.seed, len(SHAPES)])
    beside = [found for _ in range(sweeps) for found in beside_slowed(generator)]
    best = bins([(one.claimed, one.is_best) for one in outcomes])
    near = bins([(one.claimed_near, one.is_near) for one in outcomes])
    report(outcomes, best, near)
    beside_width = float(np.median([width for _, width in beside]))
    beside_coverage = share([covered for covered, _ in beside])
    print(
        f"three pairs beside a third candidate with a slowed process: {beside_width:.2f} of the t interval's width, "
        f"which holds the true gain in {beside_coverage:.1%}"
    )
    generator = np.random.default_rng([arguments.seed, len(SHAPES) + 1])
    of_two = [two_candidates(generator) for _ in range(sweeps)]
    two_coverage, two_right = share([covered for covered, _, _ in of_two]), share([right for _, right, _ in of_two])
    two_claimed = float(np.mean([claimed for _, _, claimed in of_two]))
    print(
        f"two candidates: the 95 % interval of their scores' ratio holds the true one in {two_coverage:.1%}; "
        f"claimed {two_claimed:.3f}, right {two_right:.3f}"
    )
    costs = [one.cost_of_choosing for one in outcomes]
    write_figures(
        arguments.json,
        {
            "sweeps": len(outcomes),
            "bins": [one.figures() for one in best],
            "worst_gap": worst_gap(best),
            "near_bins": [one.figures() for one in near],
            "near_worst_gap": worst_gap(near),
            "within_2pct_share": share([one.is_near for one in outcomes]),
            "cost_of_choosing_p95": float(np.quantile(costs, 0.95)),
            "gain_coverage": share([covered for one in outcomes for covered in one.gains_covered]),
            "gain_interval_width": median_width(outcomes),
            "gain_interval_width_by_pairs": [
                f"{pairs} {median_width(outcomes, pairs):.2f}" for pairs in pair_counts(outcomes)
            ],
            "gain_interval_width_beside_slowed": beside_width,
            "gain_coverage_beside_slowed": beside_coverage,
            "score_ratio_coverage_of_two": two_coverage,
            "claimed_of_two": two_claimed,
            "right_of_two": two_right,
            "rounds_mean": float(np.mean([one.rounds for one in outcomes])),
            "worst_gap_by_shape": [f"{shape} {worst_gap(of_shape(outcomes, shape)):.3f}" for shape in SHAPES],
        },
        quick=arguments.quick,
    )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a sweep claimed, and what is true.

    Attributes:
        claimed: confidence that the chosen candidate is the best.
        claimed_near: that nothing is better than it by more than 2 %.
        cost_of_choosing: by which the chosen one is truly worse than the one that led, in utility.
        gains_covered: whether the 95 % intervals of its gains in TTFT and throughput hold the true ones.
        widths: of these intervals: the number of pairs, and the width over that of the pairs' plain t interval.
    """

    shape: str
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


def simulate(shape: str, generator: Generator) -> Outcome:
    """One sweep: the search measures every candidate once, the confirm phase whom `next_round` names."""
    count = round(math.exp(generator.uniform(math.log(8), math.log(100))))
    truth = SHAPES[shape](count, generator) * math.exp(generator.uniform(math.log(0.02), math.log(0.3))) * METRIC_SIZES
    weights = utility_weights(get_profile(generator.choice(list_profiles())))
    machine = Machine.any(generator)
    evidence = machine.measure(truth, np.arange(count), 0, generator)
    most_rounds, rounds = int(generator.integers(1, 4)), 0
    while lineup := next_round(
        calm(evidence), baseline_id=BASELINE, round_number=rounds + 1, most_rounds=most_rounds, weights=weights
    ):
        rounds += 1
        evidence = joined(evidence, machine.measure(truth, np.array([int(key) for key in lineup]), rounds, generator))
    return judge(shape, calm(evidence), truth, weights, rounds, generator)


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


def beside_slowed(generator: Generator) -> list[tuple[bool, float]]:
    """Three rounds of a winner, the baseline and a third candidate, one process of which something slows unnoticed.

    Returns:
        For the winner's gain in TTFT and in throughput: whether its interval holds the true gain, and its width over
        that of the plain t interval.
    """
    truth = generator.normal(0, 0.3, (3, len(METRICS)))
    machine = replace(Machine.any(generator), slowed=0.0)
    evidence = machine.measure(truth, np.arange(3), 0, generator)
    for round_number in (1, 2, 3):
        evidence = joined(evidence, machine.measure(truth, np.arange(3), round_number, generator))
    logs = evidence.logs.copy()
    logs[-1] += generator.uniform(*SLOWDOWN) * np.array([1.0, -1.0, 0.0])
    evidence = replace(evidence, logs=logs)
    found = []
    for metric in (TTFT, DECODE):
        stated, plain = gain_interval(evidence, "1", BASELINE, metric), plain_half_width(evidence, "1", metric)
        if plain:
            is_covered = abs(truth[1, metric] - truth[0, metric] - stated.value) <= stated.half_width
            found.append((is_covered, stated.half_width / plain))
    return found


def two_candidates(generator: Generator) -> tuple[bool, bool, float]:
    """A sweep of the baseline and one other candidate, with up to three confirming rounds.

    Returns:
        Whether the 95 % interval of the scores' ratio holds the true one, whether the leader is the better one, and
        the confidence claimed for it.
    """
    truth = normal_shape(2, generator) * math.exp(generator.uniform(math.log(0.02), math.log(0.3))) * METRIC_SIZES
    weights = utility_weights(get_profile(generator.choice(list_profiles())))
    machine = Machine.any(generator)
    evidence = machine.measure(truth, np.arange(2), 0, generator)
    for round_number in range(1, int(generator.integers(1, 4)) + 1):
        evidence = joined(evidence, machine.measure(truth, np.arange(2), round_number, generator))
    evidence = calm(evidence)
    posterior = draw_utilities(evidence, evidence.ids, weights, seed=int(generator.integers(1 << 30)), draws=2000)
    ratio, utilities, leader = posterior.score_ratio("1", BASELINE), truth @ weights, posterior.leader
    is_covered = ratio.low <= math.exp(utilities[1] - utilities[0]) <= ratio.high
    return is_covered, int(leader) == int(np.argmax(utilities)), posterior.lead_shares[leader]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The noise of one sweep, as standard deviations of logarithms.

    Attributes:
        process: between processes, by metric.
        run: between the runs of one process.
        together: correlation between a process's TTFT and its throughput (a slow process is slow in both).
        heavy_tails: Student's t with four degrees of freedom instead of normal.
        drift: between rounds.
        slowed: share of processes that something else slows.
    """

    process: Array
    run: Array
    cells: int
    together: float
    heavy_tails: bool
    drift: float
    slowed: float

    @classmethod
    def any(cls, generator: Generator) -> Machine:
        """Drawn from what was seen, or is feared, in the field."""
        process = np.array([generator.uniform(0.02, 0.06), generator.uniform(0.01, 0.03), generator.uniform(0, 0.01)])
        return cls(
            process=process,
            run=process * generator.uniform(0.3, 1.0),
            cells=int(generator.choice([1, 4, 9])),
            together=float(generator.choice([0.0, 0.5])),
            heavy_tails=bool(generator.random() < 0.3),
            drift=float(generator.choice([0.0, 0.02])),
            slowed=SLOWED if generator.random() < 0.3 else 0.0,
        )

    def measure(self, truth: Array, who: npt.NDArray[np.int64], round_number: int, generator: Generator) -> Evidence:
        """One process of each of `who`."""
        runs = 1 if round_number else SEARCH_RUNS
        within = self.run**2 / self.cells * (1.0 if runs == 1 else math.pi / 2 / runs)
        size = len(who)
        drift = generator.normal(0, self.drift) * np.array([1.0, -1.0, 0.0]) if round_number else 0.0
        between = self._noise(self.process, self.together, size, generator)
        slowed = generator.random(size) < self.slowed
        lost = slowed[:, None] * np.outer(generator.uniform(*SLOWDOWN, size), [1.0, -1.0, 0.0])
        return Evidence(
            ids=tuple(str(place) for place in range(len(truth))),
            contenders=frozenset(str(place) for place in range(len(truth))),
            owner=who,
            rounds=np.full(size, round_number),
            logs=truth[who] + between + self._noise(np.sqrt(within), 0.0, size, generator) + drift + lost,
            within=np.tile(within, (size, 1)),
            disturbed=slowed & (generator.random(size) < NOTICED),
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


def of_shape(outcomes: Sequence[Outcome], shape: str) -> list[Bin]:
    return bins([(one.claimed, one.is_best) for one in outcomes if one.shape == shape])


def pair_counts(outcomes: Sequence[Outcome]) -> list[int]:
    return sorted({pairs for one in outcomes for pairs, _ in one.widths})


def median_width(outcomes: Sequence[Outcome], pairs: int | None = None) -> float:
    """Median ratio of kvray's interval to the t interval of the same pairs; with `pairs`, over sweeps with as many."""
    return float(np.median([width for one in outcomes for count, width in one.widths if pairs in (None, count)]))


def share(flags: Sequence[bool]) -> float:
    return float(np.mean(flags))


def report(outcomes: Sequence[Outcome], best: Sequence[Bin], near: Sequence[Bin]) -> None:
    """The tables for people."""
    for title, found in (("is the best", best), ("is within 2 % of the best", near)):
        print_table(
            f"{len(outcomes):,} simulated sweeps: the chosen candidate {title}",
            ("claimed", "right", "gap", "sweeps"),
            [(one.claimed, one.right, one.right - one.claimed, one.n) for one in found],
        )
    print_table(
        "By shape of the landscape",
        ("shape", "claimed", "right", "worst gap", "within 2 %", "rounds"),
        [
            (
                shape,
                float(np.mean([one.claimed for one in of])),
                share([one.is_best for one in of]),
                worst_gap(of_shape(of, shape)),
                share([one.is_near for one in of]),
                float(np.mean([one.rounds for one in of])),
            )
            for shape in SHAPES
            if (of := [one for one in outcomes if one.shape == shape])
        ],
    )
    covered = [covered for one in outcomes for covered in one.gains_covered]
    costs = [one.cost_of_choosing for one in outcomes]
    print(f"\nworst gap {worst_gap(best):.3f}; 95 % intervals of gains hold the true ones in {share(covered):.1%}")
    print_table(
        "Width of the gains' 95 % intervals, over that of the plain t interval of the same pairs",
        ("pairs", "median"),
        [(pairs, median_width(outcomes, pairs)) for pairs in pair_counts(outcomes)],
    )
    print(f"choosing the leaner or simpler of ties costs at most {np.quantile(costs, 0.95):.2%} in 95 % of sweeps")


if __name__ == "__main__":
    main()
