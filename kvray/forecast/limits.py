"""Limits that no candidate is forecast to keep: better said before a sweep than after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kvray.forecast.prediction import CellForecast, Forecast
from kvray.workload import Limits


@dataclass(frozen=True, kw_only=True)
class _Bound:
    """How a limit is held against forecasts.

    Attributes:
        value: of a cell of a candidate on so many GPUs; `None` where it is not forecast. Memory is the allocator's.
        superlative: what the candidate is that comes nearest to the limit.
        is_floor: whether values must not be lower than the limit, rather than not higher.
        is_memory: whether what a process needs beside its allocator is added.
    """

    option: str
    unit: str
    superlative: str
    value: Callable[[CellForecast, int], float | None]
    is_floor: bool = False
    is_memory: bool = False


def unreachable_limits(
    forecasts: Mapping[str, Forecast], limits: Limits, *, beside_mib: Mapping[str, float] = MappingProxyType({})
) -> tuple[str, ...]:
    """A sentence for each of `limits` that none of `forecasts` (by a candidate's label) keeps in every cell.

    Args:
        beside_mib: by label, what the candidate's process needs beside its allocator, on each GPU.
    """
    bounds = {
        "max_ttft_ms": _Bound(option="--max-ttft", unit="ms", superlative="fastest", value=lambda one, _: one.ttft_ms),
        "max_itl_ms": _Bound(option="--max-itl", unit="ms", superlative="fastest", value=_itl_ms),
        "min_decode_tok_s": _Bound(
            option="--min-throughput",
            unit="tok/s",
            superlative="fastest",
            value=lambda one, _: one.decode_tok_s,
            is_floor=True,
        ),
        "max_peak_mib": _Bound(
            option="--max-vram",
            unit="MiB",
            superlative="leanest",
            value=lambda one, gpus: one.peak_mib / gpus,
            is_memory=True,
        ),
    }
    asked = ((bound, getattr(limits, name)) for name, bound in bounds.items())
    told = (_objection(bound, limit, forecasts, beside_mib) for bound, limit in asked if limit is not None)
    return tuple(text for text in told if text)


def _objection(
    bound: _Bound, limit: float, forecasts: Mapping[str, Forecast], beside_mib: Mapping[str, float]
) -> str | None:
    sign = -1.0 if bound.is_floor else 1.0
    worst = {label: _worst(bound, one) for label, one in forecasts.items()}
    beside = beside_mib if bound.is_memory else {}
    known = {label: value + beside.get(label, 0.0) for label, value in worst.items() if value is not None}
    if not known or len(known) < len(worst):
        return None
    best = min(known, key=lambda label: sign * known[label])
    if sign * known[best] <= sign * limit:
        return None
    return (
        f"No candidate is forecast to keep {bound.option} {_figure(limit)} {bound.unit} in every cell: the "
        f"{bound.superlative}, {best}, is forecast at {_figure(known[best])} {bound.unit}."
    )


def _worst(bound: _Bound, forecast: Forecast) -> float | None:
    """The value of the cell that is hardest to keep within the limit."""
    values = [bound.value(cell, forecast.gpus) for cell in forecast.cells]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return min(known) if bound.is_floor else max(known)


def _itl_ms(cell: CellForecast, gpus: int) -> float | None:
    del gpus
    return None if cell.decode_tok_s is None else 1e3 * cell.cell.batch_size / cell.decode_tok_s


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
