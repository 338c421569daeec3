"""Whether a confidence of 90 % is right nine times in ten: simulated sweeps whose true winner is known.

Each sweep has 8 to 100 candidates on a landscape of one of four shapes, weights of one of the built-in profiles, noise
between processes (TTFT 2-6 %, throughput 1-3 %) and between runs, tails heavier than normal in three of ten, and up to
three confirming rounds, of which each may run on a machine that has become slower or faster. In three of ten sweeps one
process in twenty is slowed by something else, and half of these are noticed (marked as disturbed). The measurements are
made up; everything from them to the claim is kvray's own code.

Sweeps of two engines, a quiet one and a noisy one, are described in `two_engines.py`.

The width of the gains' intervals is compared with that of the plain t interval of the same pairs, which is what a
statistician would write down who knows nothing but the pairs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from claims import BASELINE, Bin, Outcome, bins, judge, plain_half_width, share, swept, worst_gap
from output import make_parser, print_table, write_figures
from simulated_sweeps import METRIC_SIZES, SHAPES, SLOWDOWN, Generator, Machine, calm, joined, normal_shape
from two_engines import engines_figures, engines_outcomes, report_engines

from kvray.analysis.evidence import DECODE, METRICS, TTFT
from kvray.analysis.intervals import gain_interval
from kvray.analysis.score import utility_weights
from kvray.analysis.utility_posterior import draw_utilities
from kvray.workload import get_profile, list_profiles


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--sweeps", type=int, help="of each shape (default 2500; 100 with --quick)")
    parser.add_argument(
        "--engine-sweeps", type=int, help="of each kind with two engines (default 1000; 40 with --quick)"
    )
    parser.add_argument("--pooled", action="store_true", help="believe that two engines have the same noise")
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
    of_engines = engines_outcomes(
        arguments.engine_sweeps or (40 if arguments.quick else 1000), seed=arguments.seed, pooled=arguments.pooled
    )
    report_engines(of_engines)
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
            **engines_figures(of_engines),
        },
        quick=arguments.quick,
    )


def simulate(shape: str, generator: Generator) -> Outcome:
    """One sweep of one engine."""
    count = round(math.exp(generator.uniform(math.log(8), math.log(100))))
    truth = SHAPES[shape](count, generator) * math.exp(generator.uniform(math.log(0.02), math.log(0.3))) * METRIC_SIZES
    weights = utility_weights(get_profile(generator.choice(list_profiles())))
    evidence, rounds = swept(Machine.any(generator), truth, weights, generator)
    return judge(shape, evidence, truth, weights, rounds, generator)


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
    ratio, utilities, leader = posterior.score_ratios(BASELINE)["1"], truth @ weights, posterior.leader
    is_covered = ratio.low <= math.exp(utilities[1] - utilities[0]) <= ratio.high
    return is_covered, int(leader) == int(np.argmax(utilities)), posterior.lead_shares[leader]


def of_shape(outcomes: Sequence[Outcome], shape: str) -> list[Bin]:
    return bins([(one.claimed, one.is_best) for one in outcomes if one.shape == shape])


def pair_counts(outcomes: Sequence[Outcome]) -> list[int]:
    return sorted({pairs for one in outcomes for pairs, _ in one.widths})


def median_width(outcomes: Sequence[Outcome], pairs: int | None = None) -> float:
    """Median ratio of kvray's interval to the t interval of the same pairs; with `pairs`, over sweeps with as many."""
    return float(np.median([width for one in outcomes for count, width in one.widths if pairs in (None, count)]))


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
