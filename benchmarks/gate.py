"""Whether a gate fails and passes what it should: simulated checks whose true change is known.

Each check measures up to 24 rounds of two sides in turn and looks after every round from the third on, as `kvray check`
does. The noise is made up as it was measured: processes of one side differ by 2, 4 or 6 % in time to first token and in
decode throughput and by 0.5 % in memory, cells of a process and runs differ beyond that, one process in fifty is an
outlier, and the machine drifts from round to round. What is worse is worse in all cells in time to first token and in
decode throughput, in one cell only, or not at all. Everything from the measurements to the verdict is kvray's own code.

Beside it the same data as others judge them: all runs of one side, then all of the other, 3 or 6 a side, and a Welch
interval of the mean.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from output import Figure, make_parser, print_table, write_figures
from scipy.special import stdtrit

from kvray.analysis.comparison import SESSION_SD, ComparedMetric, SideSamples, Verdict, compare
from kvray.analysis.evidence import Array
from kvray.analysis.looks import MOST_ROUNDS, is_over
from kvray.workload import Cell

MARGINS = {ComparedMetric.TTFT: 0.05, ComparedMetric.DECODE: 0.05, ComparedMetric.MEMORY: 0.02}
CELLS = tuple(Cell(context, output, 1) for context in (512, 2048) for output in (32, 128))
MEMORY_SD = 0.005
CELL_SD, RUN_SD = 0.01, 0.015
"""Of a cell within its process, and of a single run: a process of a check measures each cell once."""
OUTLIER_SHARE, OUTLIER_SIZE = 0.02, (0.1, 0.5)
DRIFT_SD, DRIFT_KEPT = 0.03, 0.9
"""Of the machine's speed, and how much of its deviation is left at the next process."""
MODE_SHARE, MODE_SIZE = 0.3, 0.1
"""The second mode of a bimodal side."""
ONE_CELL = 0.25
"""How much worse the one cell is."""
RECORDED = 6
"""Processes of a record."""
BLOCKS = (3, 6)
"""Runs a side, where others judge."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of check.

    Attributes:
        worse: by how much time to first token and decode throughput are truly worse.
        spread: between processes.
    """

    name: str
    spread: float
    worse: float = 0.0
    only_ttft: bool = False
    is_one_cell: bool = False
    is_bimodal: bool = False
    is_record: bool = False

    @property
    def true_change(self) -> Array:
        """Cells × metrics: logarithms of now/before."""
        change = np.array([math.log1p(self.worse), 0.0 if self.only_ttft else math.log1p(-self.worse), 0.0])
        cells = np.array([cell == 0 or not self.is_one_cell for cell in range(len(CELLS))])
        return np.asarray(cells[:, None] * change)


def rows() -> Iterator[Row]:
    for per_cent in (2, 4, 6):
        spread = per_cent / 100
        yield Row(name=f"none_{per_cent}", spread=spread)
        for worse in (3, 5, 10, 15):
            yield Row(name=f"worse{worse}_{per_cent}", spread=spread, worse=worse / 100)
        yield Row(name=f"cell_{per_cent}", spread=spread, worse=ONE_CELL, is_one_cell=True)
        yield Row(name=f"bimodal_{per_cent}", spread=spread, is_bimodal=True)
    yield Row(name="ttft10_4", spread=0.04, worse=0.1, only_ttft=True)
    yield Row(name="record_none_4", spread=0.04, is_record=True)
    yield Row(name="record_worse10_4", spread=0.04, worse=0.1, is_record=True)
    yield Row(name="record_worse15_4", spread=0.04, worse=0.15, is_record=True)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--checks", type=int, help="of each row (default 2000; 50 with --quick)")
    parser.add_argument("--rows", help="only these, by name and with commas; the others are kept as FILE has them")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    checks = arguments.checks or (50 if arguments.quick else 2000)
    wanted = None if arguments.rows is None else arguments.rows.split(",")
    figures: dict[str, Figure] = {"checks": checks, "most_rounds": MOST_ROUNDS}
    for place, row in enumerate(rows()):
        if wanted is None or row.name in wanted:
            figures |= row_figures(row, checks, np.random.default_rng([arguments.seed, place]))
            print(f"{row.name}: {checks} checks", file=sys.stderr)
    if wanted is not None and arguments.json is not None and arguments.json.exists():
        figures = {**json.loads(arguments.json.read_text(encoding="utf-8")), **figures}
    report(figures)
    write_figures(arguments.json, figures, quick=arguments.quick)


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
    figures: dict[str, Figure] = {**shares(row.name, found), f"{row.name}_rounds": float(np.median(rounds))}
    for runs, counts in welch.items():
        if counts:
            figures |= shares(f"{row.name}_welch{runs}", counts)
    return figures


def shares(name: str, found: Counter[Verdict]) -> dict[str, Figure]:
    return {f"{name}_{verdict}": round(found[verdict] / found.total(), 4) for verdict in Verdict}


def check(row: Row, generator: np.random.Generator) -> tuple[Verdict, int]:
    """A check's verdict, and how many rounds it measured."""
    if row.is_record:
        before, now = (
            processes(row, is_now, drift(count, generator), generator) + session_offset(generator)
            for is_now, count in ((False, RECORDED), (True, MOST_ROUNDS))
        )
    else:
        speeds = drift(2 * MOST_ROUNDS, generator)
        before, now = (processes(row, is_now, speeds[int(is_now) :: 2], generator) for is_now in (False, True))
    rounds, verdict = 0, Verdict.INCONCLUSIVE
    while not is_over(verdict, rounds):
        rounds += 1
        first = samples(before, "record") if row.is_record else samples(before[:rounds], "check")
        verdict = compare(first, samples(now[:rounds], "check"), margins=MARGINS).verdict
    return verdict, rounds


def samples(logs: Array, session: str) -> SideSamples:
    return SideSamples(
        cells=CELLS,
        logs=logs,
        rounds=np.arange(1, len(logs) + 1),
        sessions=(session,) * len(logs),
        disturbed=np.zeros(len(logs), dtype=np.bool_),
    )


def processes(row: Row, is_now: bool, speeds: Array, generator: np.random.Generator) -> Array:
    """Processes × cells × metrics: logarithms. Args: speeds: of the machine while each process ran."""
    count, shape = len(speeds), (len(speeds), len(CELLS), 3)
    slow, times = np.array([1.0, -1.0, 0.0]), np.array([1.0, 1.0, 0.0])
    own = generator.normal(size=(count, 1, 3)) * np.array([row.spread, row.spread, MEMORY_SD])
    cells = generator.normal(size=shape) * math.hypot(CELL_SD, RUN_SD) * times
    outliers = (generator.random(count) < OUTLIER_SHARE) * generator.uniform(*OUTLIER_SIZE, count)
    logs = own + cells + (speeds + outliers)[:, None, None] * slow
    if is_now and row.is_bimodal:
        modes = (generator.random(count) < MODE_SHARE) - MODE_SHARE  # the mean is that of the other side
        logs = logs + MODE_SIZE * modes[:, None, None] * slow
    return np.asarray(logs + row.true_change if is_now else logs)


def drift(count: int, generator: np.random.Generator) -> Array:
    """The machine's slowness while each of `count` processes ran, one after the other."""
    steps = generator.normal(size=count) * DRIFT_SD
    found = [steps[0]]
    for step in steps[1:]:
        found.append(DRIFT_KEPT * found[-1] + math.sqrt(1 - DRIFT_KEPT**2) * step)
    return np.array(found)


def session_offset(generator: np.random.Generator) -> Array:
    return np.asarray(generator.normal(size=3) * np.array([SESSION_SD[one] for one in ComparedMetric]))


def in_blocks(row: Row, runs: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """All processes of one side, then all of the other: means over cells."""
    speeds = drift(2 * runs, generator)
    before, now = (
        processes(row, is_now, speeds[runs * is_now : runs * (1 + is_now)], generator) for is_now in (False, True)
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
        f"Verdicts of {figures['checks']:,} simulated checks a row, margin 5 % (2 % of memory)",
        ("row", *Verdict, "median rounds"),
        [(name, *(figures[f"{name}_{one}"] for one in Verdict), figures[f"{name}_rounds"]) for name in names],
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
