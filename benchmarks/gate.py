"""Whether a gate fails and passes what it should: simulated checks whose true change is known.

Each check measures up to 24 rounds of two sides in turn and looks after every round, as `kvray check` does. The noise
is made up as it was measured: processes of one side differ by 2, 4 or 6 % in time to first token and in decode
throughput and by 0.5 % in memory, cells and runs differ beyond that, tails are heavier than normal in three checks of
ten, in three of ten one process in twenty is slowed by something else, which half the time is noticed, and the machine
drifts from process to process. What is worse is worse in all cells in time to first token and in decode throughput, in
one cell only, or not at all. Everything from the measurements to the verdict is kvray's own code.

Beside it the same data as others judge them: all runs of one side, then all of the other, 3 or 6 a side, and a Welch
interval of the mean.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping

import numpy as np
from output import Figure, make_parser, print_table, write_figures
from scipy.special import stdtrit
from simulated_checks import Noise, Row, drift, processes, rows, session_offset

from kvray.analysis.comparison import (
    ComparedMetric,
    Margins,
    Verdict,
    compare,
)
from kvray.analysis.evidence import Array
from kvray.analysis.looks import MOST_ROUNDS, is_hopeless, is_over, is_settled
from kvray.check.judge import RECORD_MARGINS

MARGINS = {
    ComparedMetric.TTFT: 0.05,
    ComparedMetric.DECODE: 0.05,
    ComparedMetric.MEMORY: 0.02,
}
RECORDED = 6
"""Processes of a record."""
RECORD_PART = 10
"""Comparisons with a record cost ten times as much, so there are so many times fewer of them."""
BLOCKS = (3, 6)
"""Runs a side, where others judge."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--checks", type=int, help="of each row (default 2000; 50 with --quick)")
    parser.add_argument(
        "--rows",
        help="only these, by name and with commas; the others are kept as FILE has them",
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    checks = arguments.checks or (50 if arguments.quick else 2000)
    wanted = None if arguments.rows is None else arguments.rows.split(",")
    figures: dict[str, Figure] = {}
    if wanted is not None and arguments.json is not None and arguments.json.exists():
        figures = json.loads(arguments.json.read_text(encoding="utf-8"))
    figures["most_rounds"] = MOST_ROUNDS
    for place, row in enumerate(rows()):
        if wanted is None or row.name in wanted:
            count = max(checks // RECORD_PART, 1) if row.is_record else checks
            figures["record_checks" if row.is_record else "checks"] = count
            figures |= row_figures(row, count, np.random.default_rng([arguments.seed, place]))
            print(f"{row.name}: {count} checks", file=sys.stderr)
            write_figures(arguments.json, figures, quick=arguments.quick)  # kept if the next row is not finished
    report(figures)


def row_figures(row: Row, checks: int, generator: np.random.Generator) -> dict[str, Figure]:
    """Shares of the verdicts and the median of the rounds; then the shares of the Welch intervals."""
    found, rounds = Counter[Verdict](), []
    welch = {runs: Counter[Verdict]() for runs in BLOCKS}
    for _ in range(checks):
        verdict, count = check(row, generator)
        found[verdict] += 1
        rounds.append(count)
        for runs in BLOCKS if not row.is_record else ():
            welch[runs][welch_verdict(*in_blocks(row, runs, generator))] += 1
    figures: dict[str, Figure] = {
        **shares(row.name, found),
        f"{row.name}_rounds": float(np.median(rounds)),
    }
    for runs, counts in welch.items():
        if counts:
            figures |= shares(f"{row.name}_welch{runs}", counts)
    return figures


def shares(name: str, found: Counter[Verdict]) -> dict[str, Figure]:
    return {f"{name}_{verdict}": round(found[verdict] / found.total(), 4) for verdict in Verdict}


def check(row: Row, generator: np.random.Generator) -> tuple[Verdict, int]:
    """A check's verdict, and how many rounds it measured."""
    noise = Noise.any(row.spread, generator)
    if row.is_record:
        before, now = (
            processes(row, noise, is_now, np.zeros(count), generator).shifted(session_offset(generator))
            for is_now, count in ((False, RECORDED), (True, MOST_ROUNDS))
        )
    else:
        speeds = drift(2 * MOST_ROUNDS, generator)
        before, now = (processes(row, noise, is_now, speeds[int(is_now) :: 2], generator) for is_now in (False, True))
    for rounds in itertools.count(1):
        first = before.samples("record", RECORDED) if row.is_record else before.samples("check", rounds)
        found = compare(first, now.samples("check", rounds), margins=margins_of(row))
        settled = is_settled(rounds, is_record=row.is_record)
        if is_over(found.verdict, rounds) or (settled and is_hopeless(rounds, found.more_rounds, is_settled=True)):
            break
    return found.verdict, rounds


def margins_of(row: Row) -> Margins:
    return RECORD_MARGINS if row.is_wide else MARGINS


def in_blocks(row: Row, runs: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """All processes of one side, then all of the other: means over cells."""
    noise, speeds = Noise.any(row.spread, generator), drift(2 * runs, generator)
    before, now = (
        processes(row, noise, is_now, speeds[runs * is_now : runs * (1 + is_now)], generator).logs
        for is_now in (False, True)
    )
    return before.mean(axis=1), now.mean(axis=1)


def welch_verdict(before: Array, now: Array) -> Verdict:
    """What a Welch interval of 95 % says about all metrics together."""
    shares_of = [side.var(axis=0, ddof=1) / len(side) for side in (before, now)]
    total = shares_of[0] + shares_of[1]
    freedom = total**2 / sum(one**2 / (len(before) - 1) for one in shares_of)
    reach = t_quantiles(freedom) * np.sqrt(total)
    change = now.mean(axis=0) - before.mean(axis=0)
    found = [one_verdict(metric, change[place], reach[place]) for place, metric in enumerate(ComparedMetric)]
    if Verdict.FAIL in found:
        return Verdict.FAIL
    return Verdict.PASS if set(found) == {Verdict.PASS} else Verdict.INCONCLUSIVE


def one_verdict(metric: ComparedMetric, change: float, reach: float) -> Verdict:
    margin = MARGINS[metric]
    beyond = change - math.log1p(margin) if metric.worse_is_more else math.log1p(-margin) - change
    return Verdict.FAIL if beyond > reach else Verdict.PASS if beyond < -reach else Verdict.INCONCLUSIVE


def t_quantiles(freedom: Array) -> Array:
    """The 97.5 % quantiles of Student's t."""
    return np.asarray(stdtrit(freedom, 0.975))


def report(figures: Mapping[str, Figure]) -> None:
    """The tables for people."""
    names = [row.name for row in rows() if f"{row.name}_pass" in figures]
    print_table(
        "Verdicts of simulated checks, margin 5 % (2 % of memory); wide: as kvray check has it against a record",
        ("row", *Verdict, "median rounds"),
        [
            (
                name,
                *(figures[f"{name}_{one}"] for one in Verdict),
                figures[f"{name}_rounds"],
            )
            for name in names
        ],
    )
    for runs in BLOCKS:
        print_table(
            f"The same noise judged by a Welch interval, {runs} runs a side in blocks",
            ("row", *Verdict),
            [
                (name, *(figures[f"{name}_welch{runs}_{one}"] for one in Verdict))
                for name in names
                if f"{name}_welch{runs}_pass" in figures
            ],
        )


if __name__ == "__main__":
    main()
