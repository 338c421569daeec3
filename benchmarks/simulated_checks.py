"""Made-up checks with known truth for `gate.py`: what is truly worse, the noise, and what the processes measure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from simulated_sweeps import NOTICED, SLOWDOWN, SLOWED

from kvray.analysis.comparison import SESSION_SD, ComparedMetric, SideSamples
from kvray.analysis.evidence import Array, Flags
from kvray.workload import Cell

CELLS = tuple(Cell(context, output, 1) for context in (512, 2048) for output in (32, 128))
MEMORY_SD = 0.005
CELL_SD, RUN_SD = 0.01, 0.015
"""Spread of a cell within its process, and of a single run: a process of a check measures each cell once."""
HEAVY_TAILED = 0.3
"""Share of checks on a machine whose processes differ as Student's t with four degrees of freedom."""
SLOWED_CHECKS = 0.3
"""Share of checks in which something else slows processes now and then; how often, by how much and whether that is
noticed is as in `simulated_sweeps`."""
DRIFT_SD, DRIFT_KEPT = 0.03, 0.9
"""Spread of the machine's speed, and how much of its deviation is left at the next process."""
MODE_SHARE, MODE_SIZE = 0.3, 0.1
"""The second mode of a bimodal side."""
ONE_CELL = 0.25
"""How much worse the one cell is."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of check.

    Attributes:
        worse: by how much time to first token and decode throughput are truly worse.
        spread: between processes.
        is_wide: judged by the margins that kvray check has against a record.
    """

    name: str
    spread: float
    worse: float = 0.0
    only_ttft: bool = False
    is_one_cell: bool = False
    is_bimodal: bool = False
    is_record: bool = False
    is_wide: bool = False

    @property
    def true_change(self) -> Array:
        """Cells × metrics: logarithms of now/before."""
        decode = 0.0 if self.only_ttft else math.log1p(-self.worse)
        change = np.array([math.log1p(self.worse), decode, 0.0])
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
    for worse in (0, 10, 25, 40, 60):
        name = f"wide_record_worse{worse}_4" if worse else "wide_record_none_4"
        yield Row(name=name, spread=0.04, worse=worse / 100, is_record=True, is_wide=True)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The machine's deviations in one check; `slowed` is the share of processes that something else slows."""

    spread: float
    is_heavy_tailed: bool
    slowed: float

    @classmethod
    def any(cls, spread: float, generator: np.random.Generator) -> Noise:
        """That of some machine."""
        return cls(
            spread=spread,
            is_heavy_tailed=bool(generator.random() < HEAVY_TAILED),
            slowed=SLOWED if generator.random() < SLOWED_CHECKS else 0.0,
        )

    def between(self, count: int, generator: np.random.Generator) -> Array:
        """Processes × 1 × metrics: what is special about each process."""
        size = (count, 1, 3)
        drawn = generator.standard_t(4, size) / math.sqrt(2) if self.is_heavy_tailed else generator.normal(size=size)
        return np.asarray(drawn * np.array([self.spread, self.spread, MEMORY_SD]))


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Processes of one side: logarithms (processes × cells × metrics), and which of them are known to be disturbed."""

    logs: Array
    disturbed: Flags

    def shifted(self, offset: Array) -> Processes:
        """All of them in another session. Args: offset: of each metric."""
        return Processes(logs=self.logs + offset, disturbed=self.disturbed)

    def samples(self, session: str, count: int) -> SideSamples:
        """The first `count` of them."""
        return SideSamples(
            cells=CELLS,
            logs=self.logs[:count],
            rounds=np.arange(1, count + 1),
            sessions=(session,) * count,
            disturbed=self.disturbed[:count],
        )


def processes(row: Row, noise: Noise, is_now: bool, speeds: Array, generator: np.random.Generator) -> Processes:
    """Args: speeds: slowness of the machine while each process ran."""
    count = len(speeds)
    slower, times = np.array([1.0, -1.0, 0.0]), np.array([1.0, 1.0, 0.0])
    cells = generator.normal(size=(count, len(CELLS), 3)) * math.hypot(CELL_SD, RUN_SD) * times
    slowed = generator.random(count) < noise.slowed
    lost = speeds + slowed * generator.uniform(*SLOWDOWN, count)
    if is_now and row.is_bimodal:
        lost = lost + MODE_SIZE * ((generator.random(count) < MODE_SHARE) - MODE_SHARE)  # the mean does not change
    logs = noise.between(count, generator) + cells + lost[:, None, None] * slower
    return Processes(
        logs=logs + row.true_change if is_now else logs,
        disturbed=slowed & (generator.random(count) < NOTICED),
    )


def drift(count: int, generator: np.random.Generator) -> Array:
    """The machine's slowness while each of `count` processes ran, one after the other."""
    steps = generator.normal(size=count) * DRIFT_SD
    found = [steps[0]]
    for step in steps[1:]:
        found.append(DRIFT_KEPT * found[-1] + math.sqrt(1 - DRIFT_KEPT**2) * step)
    return np.array(found)


def session_offset(generator: np.random.Generator) -> Array:
    """The spread of each metric. What was measured of sessions includes the drift between them."""
    return np.asarray(generator.normal(size=3) * np.array([SESSION_SD[one] for one in ComparedMetric]))
