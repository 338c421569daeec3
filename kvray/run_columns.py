"""`RunColumns`: the timed runs of a trial as arrays. A million of them as objects would take a minute and gigabytes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kvray.workload import Cell

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
FULL_LENGTH_RUNGS = (1, 2)


class TimedRun(Protocol):
    """What is read of a `kvray.record.Run`."""

    @property
    def cell(self) -> Cell: ...  # noqa: D102
    @property
    def rung(self) -> int: ...  # noqa: D102
    @property
    def ttft_ms(self) -> float: ...  # noqa: D102
    @property
    def itl_ms(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def decode_tok_s(self) -> float: ...  # noqa: D102
    @property
    def peak_mib(self) -> float | None: ...  # noqa: D102
    @property
    def energy_j(self) -> float | None: ...  # noqa: D102
    @property
    def disturbed(self) -> bool: ...  # noqa: D102
    @property
    def disturbance(self) -> str | None: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True, eq=False)
class RunColumns:
    """N runs, fields as in `Run`.

    Attributes:
        peak_mib, energy_j: NaN where not known.
        gaps_ms: `itl_ms` of these runs and perhaps of others, so that parts of a table need no copy of it.
        gap_starts, gap_stops: run n has the gaps from `gap_starts[n]` to before `gap_stops[n]`.
        reasons: every `disturbance` that there is, in the order of the runs.
    """

    context_tokens: Integers
    output_tokens: Integers
    batch_size: Integers
    rung: Integers
    ttft_ms: Floats
    decode_tok_s: Floats
    peak_mib: Floats
    energy_j: Floats
    disturbed: npt.NDArray[np.bool_]
    gaps_ms: Floats
    gap_starts: Integers
    gap_stops: Integers
    reasons: tuple[str, ...] = field(default=())

    @classmethod
    def of(cls, runs: Sequence[TimedRun]) -> RunColumns:
        """The columns of `runs`."""

        def floats(values: Sequence[float | None]) -> Floats:
            return np.array([math.nan if value is None else value for value in values], dtype=np.float64)

        def integers(values: Sequence[int]) -> Integers:
            return np.array(values, dtype=np.int64)

        stops = np.cumsum([0, *(len(run.itl_ms) for run in runs)])
        return cls(
            context_tokens=integers([run.cell.context_tokens for run in runs]),
            output_tokens=integers([run.cell.output_tokens for run in runs]),
            batch_size=integers([run.cell.batch_size for run in runs]),
            rung=integers([run.rung for run in runs]),
            ttft_ms=floats([run.ttft_ms for run in runs]),
            decode_tok_s=floats([run.decode_tok_s for run in runs]),
            peak_mib=floats([run.peak_mib for run in runs]),
            energy_j=floats([run.energy_j for run in runs]),
            disturbed=np.array([run.disturbed for run in runs], dtype=np.bool_),
            gaps_ms=floats([gap for run in runs for gap in run.itl_ms]),
            gap_starts=stops[:-1],
            gap_stops=stops[1:],
            reasons=tuple(run.disturbance for run in runs if run.disturbance is not None),
        )

    def __len__(self) -> int:
        return len(self.ttft_ms)

    def between(self, start: int, stop: int) -> RunColumns:
        """The runs from `start` to before `stop`, without reasons; nothing is copied."""
        plain: dict[str, Any] = {name: getattr(self, name)[start:stop] for name in _PLAIN}
        return RunColumns(**plain, gaps_ms=self.gaps_ms)

    def at(self, places: Sequence[int]) -> RunColumns:
        """The runs at `places`, without reasons."""
        chosen = np.asarray(places, dtype=np.int64)
        plain: dict[str, Any] = {name: getattr(self, name)[chosen] for name in _PLAIN}
        return RunColumns(**plain, gaps_ms=self.gaps_ms)

    @property
    def own_gaps_ms(self) -> Floats:
        """`itl_ms` of these runs, one after the other."""
        spans = zip(self.gap_starts.tolist(), self.gap_stops.tolist(), strict=True)
        return np.concatenate([self.gaps_ms[:0], *(self.gaps_ms[start:stop] for start, stop in spans)])

    @property
    def calm(self) -> RunColumns:
        """The runs whose environment stayed calm, or all of them when none did."""
        if not self.disturbed.any() or self.disturbed.all():
            return self
        return self.at(np.flatnonzero(~self.disturbed).tolist())

    def by_cell(self, *, full_length: bool) -> dict[Cell, RunColumns]:
        """The runs of each cell, in the order in which cells were first measured.

        Args:
            full_length: only those of rungs 1 and 2, which share the full-length cells.
        """
        places = defaultdict[tuple[int, int, int], list[int]](list)
        shapes = zip(self.context_tokens.tolist(), self.output_tokens.tolist(), self.batch_size.tolist(), strict=True)
        for place, (shape, rung) in enumerate(zip(shapes, self.rung.tolist(), strict=True)):
            if not full_length or rung in FULL_LENGTH_RUNGS:
                places[shape].append(place)
        return {Cell(*shape): self.at(chosen) for shape, chosen in places.items()}


_PLAIN = (
    *("context_tokens", "output_tokens", "batch_size", "rung"),
    *("ttft_ms", "decode_tok_s", "peak_mib", "energy_j", "disturbed"),
    *("gap_starts", "gap_stops"),
)


def joined(columns: Sequence[RunColumns]) -> RunColumns:
    """All runs of several, without reasons."""
    if len(columns) == 1:
        return columns[0]
    gaps = [one.own_gaps_ms for one in columns]
    stops = np.cumsum(np.concatenate([one.gap_stops - one.gap_starts for one in columns]))
    plain: dict[str, Any] = {name: np.concatenate([getattr(one, name) for one in columns]) for name in _PLAIN[:-2]}
    return RunColumns(
        **plain, gaps_ms=np.concatenate(gaps), gap_starts=np.concatenate([[0], stops[:-1]]), gap_stops=stops
    )
