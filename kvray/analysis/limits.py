"""What a profile's limits are compared with, and by how much they are missed.

A limit must hold in every cell, so the worst cell counts and not a mean (docs/limits.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from kvray.analysis.aggregate import CellMetrics, Metrics
from kvray.judgement import DECODE_LENIENCE, Limits
from kvray.ratios import limit_text
from kvray.record import TrialRecord
from kvray.workload import Cell

QUALITY = "max_quality_loss"
ONE_PROCESS_95 = {"max_ttft_ms": 0.14, "max_itl_ms": 0.14, "min_decode_tok_s": 0.046, "max_peak_mib": 0.016}
"""By limit: half the 95 % interval of its metric's logarithm that a single process gives (`analysis.noise`)."""
_NEVER_DISTURBED = ("max_peak_mib",)
"""Other programs change nothing about the memory that a process holds."""


@dataclass(frozen=True, kw_only=True)
class Miss:
    """One limit that a candidate does not keep.

    Attributes:
        limit_name: the limit's name in `Limits`.
        metric: what it bounds, for people, e.g. `TTFT`.
        measured: in the worst cell; `None` where it was not measured, so that the limit cannot be checked.
        cell: the worst one; `None` for what is not measured per cell.
        is_disturbed: whether every run that the figure rests on was disturbed. No undisturbed cell misses the limit.
    """

    limit_name: str
    metric: str
    unit: str
    limit: float
    measured: float | None
    cell: Cell | None = None
    is_disturbed: bool = False

    def is_doubtful(self, half_width: float | None = None) -> bool:
        """Whether the candidate may keep the limit all the same: the figure is within its 95 % interval of it, or rests
        on disturbed runs alone.

        Args:
            half_width: half that interval, of the logarithm; by default that of a single process.
        """
        if half_width is None:
            half_width = ONE_PROCESS_95.get(self.limit_name, 0.0)
        return self.is_disturbed or math.log(self.factor) <= half_width

    @property
    def factor(self) -> float:
        """How many times beyond the limit: 2 is twice the milliseconds or half the tok/s; infinite if not measured."""
        if not self.measured:
            return math.inf
        return max(self.measured / self.limit, self.limit / self.measured)

    @property
    def text(self) -> str:
        """E.g. `TTFT 512 ms at 8192→64, 28 % over the limit of 400 ms`, `TTFT 812 ms at 8192→64, 2.03× the limit …`."""
        limit = f"the limit of {_figure(self.limit)} {self.unit}"
        if self.measured is None:
            return f"{self.metric} was not measured, so {limit} cannot be checked"
        where = f" at {self.cell.label}" if self.cell else ""
        where += " (every run of it disturbed)" if self.is_disturbed else ""
        how_far = limit_text(self.measured / self.limit)
        return f"{self.metric} {_figure(self.measured)} {self.unit}{where}, {how_far} {limit}"


def missed_limits(record: TrialRecord, cells: Sequence[CellMetrics], limits: Limits) -> tuple[Miss, ...]:
    """Each of `limits` that does not hold in all of `cells`, which the trial of `record` measured, or for the loss of
    quality that `record` has. A loss that was not measured misses nothing.
    """
    if not limits.bound_cells:
        return missed_quality(record, limits)
    checked = (_missed(bound, cells, limits) for bound in _bounds(record))
    return (*(miss for miss in checked if miss is not None), *missed_quality(record, limits))


def kept_limits(record: TrialRecord, cells: Sequence[CellMetrics], limits: Limits) -> tuple[str, ...]:
    """The worst of `cells` for each of `limits`, all of which are kept: `TTFT 223 ms at 700→64 (limit 400 ms)`. The
    quality limit is left out: its loss is no figure of a cell."""
    return tuple(
        f"{bound.metric} {_figure(measured)} {bound.unit} at {worst.cell.label} (limit {_figure(limit)} {bound.unit})"
        for bound in _bounds(record)
        if (limit := getattr(limits, bound.limit_name)) is not None and (known := bound.known(cells))
        for worst, measured in [bound.worst(known)]
    )


def missed_quality(record: TrialRecord, limits: Limits) -> tuple[Miss, ...]:
    """The quality limit, if the loss that `record` has is beyond it."""
    most = limits.max_quality_loss
    if most is None or limits.allow_loss(record.kl_mean, record.kl_decode):
        return ()
    metric, limit, measured, upper = "quality loss", most, record.kl_mean, record.kl_upper
    if measured is None or measured <= most:
        metric, limit = "quality loss over the tokens decoded one by one", DECODE_LENIENCE * most
        measured, upper = record.kl_decode, record.kl_decode_upper
    metric += " of at least" if upper is not None else ""
    return (Miss(limit_name=QUALITY, metric=metric, unit="nats per token", limit=limit, measured=measured),)


def is_loss_in_doubt(record: TrialRecord, limits: Limits) -> bool:
    """Whether `record`, which does not miss the quality limit, is not shown to keep it either: its loss is known within
    bounds only, and the upper one is beyond the limit."""
    return not missed_quality(record, limits) and not limits.allow_loss(record.kl_upper, record.kl_decode_upper)


def memory_beside_allocator_mib(record: TrialRecord) -> float:
    """Device memory (MiB) that the trial's process held beyond what its allocator had reserved: CUDA's context and
    libraries. 0 where the driver does not tell, and on a CPU, where a peak is that of the whole process."""
    if record.device_peak_mib is None or record.reserved_peak_mib is None:
        return 0.0
    return max(0.0, record.device_peak_mib - record.reserved_peak_mib)


def fullest_gpu_share(record: TrialRecord) -> float:
    """Share of the trial's device memory that lies on the GPU with the most of it. 1 on a single GPU, and where the
    driver does not tell: then all GPUs together are held against a limit that is meant for each."""
    if record.parallelism == 1 or not record.device_peak_mib or record.device_peak_gpu_mib is None:
        return 1.0
    return record.device_peak_gpu_mib / record.device_peak_mib


@dataclass(frozen=True, kw_only=True)
class _Bound:
    """One limit, and what it bounds: from above, or from below where that `is_floor`."""

    limit_name: str
    metric: str
    unit: str
    value: Callable[[Metrics], float | None]
    is_floor: bool = False

    def known(self, cells: Sequence[CellMetrics]) -> list[tuple[CellMetrics, float]]:
        return [(one, measured) for one in cells if (measured := self.value(one.metrics)) is not None]

    def worst(self, known: Sequence[tuple[CellMetrics, float]]) -> tuple[CellMetrics, float]:
        return (min if self.is_floor else max)(known, key=lambda pair: pair[1])

    def is_missed(self, measured: float, limit: float) -> bool:
        return measured < limit if self.is_floor else measured > limit


def _bounds(record: TrialRecord) -> tuple[_Bound, ...]:
    beside_mib, share = memory_beside_allocator_mib(record), fullest_gpu_share(record)
    return (
        _Bound(limit_name="max_ttft_ms", metric="TTFT", unit="ms", value=lambda one: one.ttft_ms),
        _Bound(limit_name="max_itl_ms", metric="ITL (p95)", unit="ms", value=lambda one: one.itl_p95_ms),
        _Bound(
            limit_name="min_decode_tok_s",
            metric="decode throughput",
            unit="tok/s",
            value=lambda one: one.decode_tok_s,
            is_floor=True,
        ),
        _Bound(
            limit_name="max_peak_mib",
            metric="peak memory" if share == 1 else "peak memory of one GPU",
            unit="MiB",
            value=lambda one: None if one.peak_mib is None else (one.peak_mib + beside_mib) * share,
        ),
    )


def _missed(bound: _Bound, cells: Sequence[CellMetrics], limits: Limits) -> Miss | None:
    """How the worst of `cells` misses the limit of `bound`. Where undisturbed cells miss it, the worst of these."""
    limit: float | None = getattr(limits, bound.limit_name)
    if limit is None:
        return None
    miss = partial(Miss, limit_name=bound.limit_name, metric=bound.metric, unit=bound.unit, limit=limit)
    known = bound.known(cells)
    if not known or len(known) < len(cells):
        return miss(measured=None)
    missing = [(one, measured) for one, measured in known if bound.is_missed(measured, limit)]
    if not missing:
        return None
    calm = [pair for pair in missing if not pair[0].is_disturbed or bound.limit_name in _NEVER_DISTURBED]
    worst, measured = bound.worst(calm or missing)
    return miss(measured=measured, cell=worst.cell, is_disturbed=not calm)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
