"""What a profile's limits are compared with, and by how much they are missed.

A limit must hold in every cell, so the worst cell counts and not a mean (docs/limits.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvray.analysis.aggregate import CellMetrics, Metrics
from kvray.judgement import DECODE_LENIENCE, Limits
from kvray.ratios import limit_text
from kvray.record import TrialRecord
from kvray.workload import Cell

QUALITY = "max_quality_loss"


@dataclass(frozen=True, kw_only=True)
class Miss:
    """One limit that a candidate does not keep.

    Attributes:
        limit_name: the limit's name in `Limits`.
        metric: what it bounds, for people, e.g. `TTFT`.
        measured: in the worst cell; `None` where it was not measured, so that the limit cannot be checked.
        cell: the worst one; `None` for what is not measured per cell.
    """

    limit_name: str
    metric: str
    unit: str
    limit: float
    measured: float | None
    cell: Cell | None = None

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
        how_far = limit_text(self.measured / self.limit)
        return f"{self.metric} {_figure(self.measured)} {self.unit}{where}, {how_far} {limit}"


def missed_limits(record: TrialRecord, cells: Sequence[CellMetrics], limits: Limits) -> tuple[Miss, ...]:
    """Each of `limits` that does not hold in all of `cells`, which the trial of `record` measured, or for the loss of
    quality that `record` has. A loss that was not measured misses nothing.
    """
    beside_mib = memory_beside_allocator_mib(record)
    checked = (
        _check(limits, "max_ttft_ms", cells, lambda one: one.ttft_ms, metric="TTFT", unit="ms"),
        _check(limits, "max_itl_ms", cells, lambda one: one.itl_p95_ms, metric="ITL (p95)", unit="ms"),
        _check(
            limits,
            "min_decode_tok_s",
            cells,
            lambda one: one.decode_tok_s,
            metric="decode throughput",
            unit="tok/s",
            is_floor=True,
        ),
        _check(
            limits,
            "max_peak_mib",
            cells,
            lambda one: None if one.peak_mib is None else one.peak_mib + beside_mib,
            metric="peak memory",
            unit="MiB",
        ),
    )
    return (*(miss for miss in checked if miss is not None), *missed_quality(record, limits))


def missed_quality(record: TrialRecord, limits: Limits) -> tuple[Miss, ...]:
    """The quality limit, if the loss that `record` has is beyond it."""
    most = limits.max_quality_loss
    if most is None or limits.allow_loss(record.kl_mean, record.kl_decode):
        return ()
    metric, limit, measured = "quality loss", most, record.kl_mean
    if measured is None or measured <= most:
        metric, limit = "quality loss over the tokens decoded one by one", DECODE_LENIENCE * most
        measured = record.kl_decode
    return (Miss(limit_name=QUALITY, metric=metric, unit="nats per token", limit=limit, measured=measured),)


def memory_beside_allocator_mib(record: TrialRecord) -> float:
    """Device memory (MiB) that the trial's process held beyond what its allocator had reserved: CUDA's context and
    libraries. 0 where the driver does not tell, and on a CPU, where a peak is that of the whole process."""
    if record.device_peak_mib is None or record.reserved_peak_mib is None:
        return 0.0
    return max(0.0, record.device_peak_mib - record.reserved_peak_mib)


def _check(
    limits: Limits,
    name: str,
    cells: Sequence[CellMetrics],
    value: Callable[[Metrics], float | None],
    *,
    metric: str,
    unit: str,
    is_floor: bool = False,
) -> Miss | None:
    """How the worst of `cells` misses the limit `name`: the highest `value`, or the lowest where that `is_floor`."""
    limit: float | None = getattr(limits, name)
    if limit is None:
        return None
    known = {one.cell: measured for one in cells if (measured := value(one.metrics)) is not None}
    if not known or len(known) < len(cells):
        return Miss(limit_name=name, metric=metric, unit=unit, limit=limit, measured=None)
    worst = (min if is_floor else max)(known, key=known.__getitem__)
    is_kept = known[worst] >= limit if is_floor else known[worst] <= limit
    if is_kept:
        return None
    return Miss(limit_name=name, metric=metric, unit=unit, limit=limit, measured=known[worst], cell=worst)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
