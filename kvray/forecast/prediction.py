"""`Forecast`: what one candidate will need and do on every cell, whether it fits, and how long a context would."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kvray.candidate import Candidate, DeviceType
from kvray.forecast.cost_model import CostModel
from kvray.forecast.hardware import Hardware
from kvray.forecast.memory import MIB
from kvray.forecast.roofline import copy_s
from kvray.workload import Cell, WorkloadProfile

MARGIN = 0.03
"""Share of the free memory that is left alone: allocators round up and keep what they cannot reuse. Small, because a
candidate kept out by mistake is lost, and one let in by mistake costs a load."""
_LONGEST_CONTEXT = 1 << 30


@dataclass(frozen=True, kw_only=True)
class CellForecast:
    """Predictions for one cell; `None` where the device was not measured.

    Attributes:
        peak_mib: as the record's: the allocator's peak (CUDA), or the resident set, libraries included (CPU); without a
            measured device the libraries are missing from it.
        held_mib: of the tensors that model and cache hold.
        droppable_mib: that part of the peak without which the candidate would run as well.
        ideal_decode_tok_s: at which reading weights and cache once a step would take all of the copy bandwidth, of all
            the candidate's GPUs together.
    """

    cell: Cell
    ttft_ms: float | None
    decode_tok_s: float | None
    peak_mib: float
    held_mib: float
    ideal_decode_tok_s: float | None
    droppable_mib: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Predictions for a candidate: `cells`, and over them the geometric means, as a record has them.

    Attributes:
        cells: those at full length.
        short_cells: those of the first rung.
        gpus: over which the candidate is spread; memory is that of all together.
    """

    ttft_ms: float | None
    decode_tok_s: float | None
    peak_mib: float
    cells: tuple[CellForecast, ...]
    short_cells: tuple[CellForecast, ...] = ()
    gpus: int = 1

    @classmethod
    def of(cls, cells: Sequence[CellForecast], short_cells: Sequence[CellForecast] = (), *, gpus: int = 1) -> Forecast:
        """The means over `cells`."""
        peak_mib = _mean(one.peak_mib for one in cells)
        if peak_mib is None:
            raise ValueError("a forecast without cells")
        return cls(
            ttft_ms=_mean(one.ttft_ms for one in cells),
            decode_tok_s=_mean(one.decode_tok_s for one in cells),
            peak_mib=peak_mib,
            cells=tuple(cells),
            short_cells=tuple(short_cells),
            gpus=gpus,
        )

    @property
    def highest_peak_mib(self) -> float:
        """The peak of the hungriest cell."""
        return max(one.peak_mib for one in self.cells)

    @property
    def needed_mib(self) -> float:
        """What must be free for every cell to run."""
        return max(one.peak_mib - one.droppable_mib for one in self.cells)

    def at_rung(self, rung: int) -> Forecast:
        """The same for the cells of `rung`, so that it compares with what was measured there."""
        return Forecast.of(self.short_cells, gpus=self.gpus) if rung == 0 and self.short_cells else self

    def roofline_share(self, decode_tok_s: float) -> float | None:
        """Measured tokens per second over those at which the device would do nothing but read weights and cache once a
        step at its copy bandwidth; geometric means over the cells. A kernel that only reads can be faster than a copy,
        and a cache level can hold a small model, so it may exceed 1."""
        ideal = _mean(one.ideal_decode_tok_s for one in self.cells)
        return None if ideal is None else decode_tok_s / ideal


def forecast(
    costs: CostModel,
    candidate: Candidate,
    profile: WorkloadProfile,
    device: DeviceType,
    hardware: Hardware | None = None,
) -> Forecast:
    """What `candidate` will need and do in `profile`, by the `costs` of its engine; without `hardware` its memory
    only."""

    def predicted(rung: int) -> list[CellForecast]:
        cells = profile.cells(candidate.batch_size, rung=rung)
        return [forecast_cell(costs, candidate, cell, device, hardware) for cell in cells]

    return Forecast.of(predicted(1), predicted(0), gpus=_gpus(candidate, device))


def forecast_cell(
    costs: CostModel, candidate: Candidate, cell: Cell, device: DeviceType, hardware: Hardware | None
) -> CellForecast:
    """The predictions for one `cell`."""
    need, gpus = costs.memory(candidate, cell, device), _gpus(candidate, device)
    resident_mib = hardware.resident_mib if hardware is not None and device is DeviceType.CPU else 0.0
    first_s = step_s = ideal_s = None
    if hardware is not None:
        first_s = costs.prefill_s(candidate, cell, hardware)
        step_s = costs.decode_step_s(candidate, cell, hardware)
        ideal_s = copy_s(costs.least_read_bytes(candidate, cell), hardware, gpus=gpus)
    return CellForecast(
        cell=cell,
        ttft_ms=None if first_s is None else first_s * 1e3,
        decode_tok_s=None if step_s is None else cell.batch_size / step_s,
        peak_mib=need.peak_over(candidate.parallelism) / MIB + candidate.parallelism * resident_mib,
        held_mib=need.held / MIB,
        droppable_mib=need.droppable / MIB,
        ideal_decode_tok_s=None if ideal_s is None else cell.batch_size / ideal_s,
    )


def does_not_fit(forecast: Forecast, hardware: Hardware | None, free_mib: float | None) -> str | None:
    """Why the candidate is not launched: on a GPU it needs more than `free_mib` less `MARGIN`; `None` if it fits or
    nothing is known. On CUDA the process needs memory outside the allocator too, on each GPU; the rest is spread."""
    if free_mib is None:
        return None
    needed = forecast.needed_mib / forecast.gpus + beside_allocator_mib(hardware)
    usable = free_mib * (1 - MARGIN)
    if needed <= usable:
        return None
    worst = max(forecast.cells, key=lambda one: one.peak_mib - one.droppable_mib)
    each = "" if forecast.gpus == 1 else f" on each of {forecast.gpus} GPUs"
    return (
        f"needs {needed:,.0f} MiB{each} for {worst.cell.label} by forecast, but only {usable:,.0f} MiB can be used "
        f"({free_mib:,.0f} MiB free, less {MARGIN * 100:.0f} %)"
    )


def longest_context(
    costs: CostModel,
    candidate: Candidate,
    *,
    output_tokens: int,
    device: DeviceType,
    hardware: Hardware | None,
    free_mib: float,
) -> int:
    """Prompt tokens per sequence, `output_tokens` following them, up to which `candidate` fits; 0: not even the weights
    do."""

    def fits(context: int) -> bool:
        cell = Cell(context, output_tokens, candidate.batch_size)
        one = forecast_cell(costs, candidate, cell, device, hardware)
        return does_not_fit(Forecast.of([one], gpus=_gpus(candidate, device)), hardware, free_mib) is None

    return _last_true(fits, _LONGEST_CONTEXT)


def _gpus(candidate: Candidate, device: DeviceType) -> int:
    """Over which its memory and its reading are spread. Processes on a CPU share one memory."""
    return candidate.parallelism if device is DeviceType.CUDA else 1


def _last_true(holds: Callable[[int], bool], limit: int) -> int:
    """The largest number below `limit` for which `holds`, which stops holding once and for all somewhere; 0: none."""
    good, bad = 0, limit
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return good


def beside_allocator_mib(hardware: Hardware | None) -> float:
    """Device memory (MiB) that a process on CUDA needs beside its allocator; 0 on a CPU, whose peaks include it."""
    return hardware.resident_mib if hardware is not None and hardware.device is DeviceType.CUDA else 0.0


def _mean(values: Iterable[float | None]) -> float | None:
    """Geometric; `None` if one is not known."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return statistics.geometric_mean(known) if known and len(known) == len(listed) else None
