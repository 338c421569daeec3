"""How often chance alone makes `kvray suite check` say something: simulated suites whose true changes are known.

A suite has 27 cases of one cell, and the noise of `simulated_checks`, which all its cases share; processes of one case
differ by 4, 6 or 10 %. Each case is measured until it is decided, in up to 8 rounds, for which five minutes are enough.
It is judged once as if it were the only one, and once by what so many need together.
"""

from __future__ import annotations

import itertools

import numpy as np
from output import Figure, make_parser, print_table, write_figures
from simulated_checks import Noise, Processes, Row, drift, processes

from kvray.analysis.comparison import LEAST_ROUNDS, Comparison, SideSamples, Verdict, compare
from kvray.analysis.looks import is_over
from kvray.check.suite.running import DEFAULT_MARGINS

CASES = 27
MOST_ROUNDS = 8
SPREADS = (4, 6, 10)
CHANGES = (-40, -25, 30, 50)
"""Per cent by which a single case truly becomes worse; below 0 it becomes better."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--suites", type=int, help="of each spread (default 80; 10 with --quick)")
    arguments = parser.parse_args()
    suites = arguments.suites or (10 if arguments.quick else 80)
    figures: dict[str, Figure] = {"cases": CASES, "most_rounds": MOST_ROUNDS, "suites": suites}
    for spread, together in itertools.product(SPREADS, (1, CASES)):
        figures |= unchanged(spread, together, suites)
        for change in CHANGES:
            figures |= one_changed(spread, together, change, 2 * suites)
        write_figures(arguments.json, figures, quick=arguments.quick)
    report(figures)


def unchanged(spread: int, together: int, suites: int) -> dict[str, Figure]:
    """Of suites in which nothing changes: the shares that fail by a figure, that call something better, that pass."""
    generator, row = np.random.default_rng(spread), Row(name="none", spread=spread / 100)
    fails = gains = passes = 0
    for _ in range(suites):
        noise = Noise.any(row.spread, generator)
        found = [one_case(row, noise, together, generator) for _ in range(CASES)]
        fails += any(one.verdict is Verdict.FAIL for one in found)
        gains += any(map(says_better, found))
        passes += all(one.verdict is Verdict.PASS for one in found)
    name = f"none_{spread}_{together}"
    shares = {"fail": fails, "better": gains, "pass": passes}
    return {f"{name}_{what}": round(count / suites, 4) for what, count in shares.items()}


def one_changed(spread: int, together: int, change: int, checks: int) -> dict[str, Figure]:
    """Of cases that become worse by `change` per cent: the share that fails; of those that become better: that are
    called so."""
    generator, row = np.random.default_rng(spread), Row(name="one", spread=spread / 100, worse=change / 100)
    found = [one_case(row, Noise.any(row.spread, generator), together, generator) for _ in range(checks)]
    seen = sum(says_better(one) if change < 0 else one.verdict is Verdict.FAIL for one in found)
    return {f"one_{spread}_{together}_{change}": round(seen / checks, 4)}


def says_better(found: Comparison) -> bool:
    return any(one.is_better for one in found.metrics)


def one_case(row: Row, noise: Noise, together: int, generator: np.random.Generator) -> Comparison:
    """As it is decided, or after the last round."""
    speeds = drift(2 * MOST_ROUNDS, generator)
    before, now = (processes(row, noise, is_now, speeds[int(is_now) :: 2], generator) for is_now in (False, True))
    for rounds in itertools.count(LEAST_ROUNDS):
        sides = (in_one_cell(side, rounds) for side in (before, now))
        found = compare(*sides, margins=DEFAULT_MARGINS, together=together)
        if is_over(found.verdict, rounds) or rounds == MOST_ROUNDS:
            return found
    raise AssertionError


def in_one_cell(side: Processes, rounds: int) -> SideSamples:
    whole = side.samples("check", rounds)
    return SideSamples(
        cells=whole.cells[:1],
        logs=whole.logs[:, :1],
        rounds=whole.rounds,
        sessions=whole.sessions,
        disturbed=whole.disturbed,
    )


def report(figures: dict[str, Figure]) -> None:
    """The tables for people."""
    pairs = list(itertools.product(SPREADS, (1, CASES)))
    print_table(
        f"Suites of {CASES} cases in which nothing changes: share that says so of at least one case",
        ("spread %", "judged as one of", "FAIL", "better", "all PASS"),
        [
            (spread, together, *(figures[f"none_{spread}_{together}_{what}"] for what in ("fail", "better", "pass")))
            for spread, together in pairs
        ],
    )
    print_table(
        "A case whose times change by so many per cent (below 0: better): share that is told",
        ("spread %", "judged as one of", *map(str, CHANGES)),
        [
            (spread, together, *(figures[f"one_{spread}_{together}_{change}"] for change in CHANGES))
            for spread, together in pairs
        ],
    )


if __name__ == "__main__":
    main()
