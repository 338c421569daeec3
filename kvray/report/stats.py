"""The winner's figures beside the baseline's, and gains as phrases."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvray.analysis.aggregate import Metrics
from kvray.analysis.confidence import Confidence, confirmed_gains
from kvray.analysis.intervals import Interval
from kvray.report import formats
from kvray.report.rows import Row

NOTICEABLE = 0.005
"""Gains below half a per cent are shown as none."""
_TIMES_FROM = 0.5
"""From +50 % on, speed is said as a multiple: `1.9× as fast`."""


@dataclass(frozen=True, kw_only=True)
class Stat:
    """One figure of the winner.

    Attributes:
        before: the baseline's; `None` without one, or when the baseline won.
        change: in words, e.g. `1.92× as fast`.
        interval: of the change, 95 %, as per cents.
        is_better: `None` where nothing changed beyond noise or there is nothing to compare with.
    """

    name: str
    unit: str
    value: str
    before: str | None = None
    change: str | None = None
    interval: str | None = None
    is_better: bool | None = None


def winner_stats(winner: Row, baseline: Metrics | None, confidence: Confidence | None) -> tuple[Stat, ...]:
    """First token, throughput and, where it was measured, memory of the winner."""
    if winner.is_baseline or baseline is None:
        before = ttft_interval = throughput_interval = None
    else:
        before = baseline
        ttft_interval = confidence.ttft_gain if confidence else None
        throughput_interval = confidence.throughput_gain if confidence else None
    ttft_gain, throughput_gain = confirmed_gains(confidence) or (winner.ttft_gain, winner.throughput_gain)
    stats = [
        _speed_stat("First token", "ms", winner.ttft_ms, before.ttft_ms if before else None, ttft_gain, ttft_interval),
        _speed_stat(
            "Throughput",
            "tok/s",
            winner.decode_tok_s,
            before.decode_tok_s if before else None,
            throughput_gain,
            throughput_interval,
        ),
    ]
    if winner.peak_mib is not None:
        stats.append(_memory_stat(winner.peak_mib, before.peak_mib if before else None, winner.memory_saved))
    return tuple(stats)


def speed(gain: float) -> str:
    """A gain in speed as a phrase: `1.90× as fast`, `12 % faster`, `3 % slower`, `as fast`."""
    if abs(gain) < NOTICEABLE:
        return "as fast"
    if gain >= _TIMES_FROM:
        return f"{formats.multiple(1 + gain)} as fast"
    return f"{abs(gain) * 100:.0f} % {'faster' if gain > 0 else 'slower'}"


def in_noise(interval: Interval | None) -> bool:
    """Whether a gain with this 95 % interval may as well be none."""
    return interval is not None and interval.low <= 0 <= interval.high


def memory(saved: float) -> str:
    """A share of memory saved as a phrase: `12 % less memory`, `3 % more memory`, `the same memory`."""
    if abs(saved) < NOTICEABLE:
        return "the same memory"
    return f"{abs(saved) * 100:.0f} % {'less' if saved > 0 else 'more'} memory"


def _speed_stat(
    name: str, unit: str, value: float, before: float | None, gain: float | None, interval: Interval | None
) -> Stat:
    if before is None or gain is None:
        return Stat(name=name, unit=unit, value=formats.quantity(value))
    return Stat(
        name=name,
        unit=unit,
        value=formats.quantity(value),
        before=formats.quantity(before),
        change=f"{speed(gain)}, within noise" if in_noise(interval) else speed(gain),
        interval=f"{formats.gain(interval.low)} to {formats.gain(interval.high)}" if interval else None,
        is_better=None if in_noise(interval) else _is_better(gain),
    )


def _memory_stat(value: float, before: float | None, saved: float | None) -> Stat:
    stat = Stat(name="Peak memory", unit="MiB", value=formats.quantity(value))
    if before is None or saved is None:
        return stat
    return replace(stat, before=formats.quantity(before), change=memory(saved), is_better=_is_better(saved))


def _is_better(gain: float) -> bool | None:
    return None if abs(gain) < NOTICEABLE else gain > 0
