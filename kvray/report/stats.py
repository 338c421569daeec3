"""The winner's figures beside the baseline's, and its gains as phrases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kvray.analysis.aggregate import Metrics
from kvray.analysis.intervals import Interval
from kvray.analysis.ranking import Gain
from kvray.ratios import (
    SAME_WITHIN,
    amount_interval_text,
    first_token_interval_text,
    first_token_text,
    memory_text,
    speed_interval_text,
    speed_text,
    throughput_text,
    tok_s_interval_text,
    tok_s_text,
)
from kvray.report import formats
from kvray.report.rows import Row


@dataclass(frozen=True, kw_only=True)
class Stat:
    """One figure of the winner.

    Attributes:
        before: the baseline's; `None` without one, or when the baseline won.
        change: in words, e.g. `1.92× as fast`.
        interval: the change's 95 % interval.
        is_better: `None` where nothing changed beyond noise or there is nothing to compare with.
        is_apart: whether `value` and `before`, which are of all processes, have clearly another ratio than `change`.
    """

    name: str
    unit: str
    value: str
    before: str | None = None
    change: str | None = None
    interval: str | None = None
    is_better: bool | None = None
    is_apart: bool = False


def winner_stats(winner: Row, baseline: Metrics | None) -> tuple[Stat, ...]:
    """First token, throughput and, where it was measured, memory of the winner."""
    stats = (
        Stat(name="First token", unit="ms", value=formats.quantity(winner.ttft_ms)),
        Stat(name="Throughput", unit="tok/s", value=formats.quantity(winner.decode_tok_s)),
        Stat(name="Peak memory", unit="MiB", value=formats.quantity(winner.peak_mib)),
    )[: 2 if winner.peak_mib is None else 3]
    if winner.is_baseline or baseline is None or winner.gain is None:
        return stats
    gain, factor = winner.gain, winner.gain.memory_factor
    ttft, throughput, *memory = stats
    ends, throughput_ends = _ends(gain.ttft_interval), _ends(gain.throughput_interval)
    return (
        _speed(
            replace(
                ttft,
                is_apart=winner.ttft_is_apart,
                interval=None if ends is None else speed_interval_text(1 + gain.ttft, *ends),
            ),
            baseline.ttft_ms,
            speed_text(1 + gain.ttft),
            gain.ttft,
            gain.ttft_interval,
        ),
        _speed(
            replace(
                throughput,
                is_apart=winner.throughput_is_apart,
                interval=None
                if throughput_ends is None
                else amount_interval_text(1 + gain.throughput, *throughput_ends),
            ),
            baseline.decode_tok_s,
            tok_s_text(1 + gain.throughput),
            gain.throughput,
            gain.throughput_interval,
        ),
        *(_memory(stat, baseline.peak_mib, factor) for stat in memory),
    )


def gain_phrases(gain: Gain, *, with_intervals: bool = False) -> tuple[str, ...]:
    """First token, tok/s and memory against the baseline, e.g. `first token 2.65× as fast`; memory only where it
    differs."""
    return tuple(_phrases(gain, with_intervals))


def in_noise(interval: Interval | None) -> bool:
    """Whether a gain with this 95 % interval may as well be none."""
    return interval is not None and interval.low <= 0 <= interval.high


def interval_texts(gain: Gain) -> tuple[str, str] | None:
    """The 95 % intervals of first token and tok/s, in the direction and unit of `gain_phrases`; `None` where they are
    not known."""
    ttft, throughput = _ends(gain.ttft_interval), _ends(gain.throughput_interval)
    if ttft is None or throughput is None:
        return None
    return first_token_interval_text(1 + gain.ttft, ttft), tok_s_interval_text(1 + gain.throughput, throughput)


def _phrases(gain: Gain, with_intervals: bool) -> Iterator[str]:
    ttft, throughput = (_ends(one) for one in (gain.ttft_interval, gain.throughput_interval))
    yield first_token_text(1 + gain.ttft, ttft, with_interval=with_intervals)
    yield throughput_text(1 + gain.throughput, throughput, with_interval=with_intervals)
    factor = gain.memory_factor
    if factor is not None and abs(factor - 1) >= SAME_WITHIN:
        yield memory_text(factor)


def _ends(interval: Interval | None) -> tuple[float, float] | None:
    return None if interval is None else (1 + interval.low, 1 + interval.high)


def _speed(stat: Stat, before: float, change: str, gain: float, interval: Interval | None) -> Stat:
    return replace(
        stat,
        before=formats.quantity(before),
        change=f"{change}, within noise" if in_noise(interval) else change,
        is_better=None if in_noise(interval) else _is_better(1 + gain),
    )


def _memory(stat: Stat, before: float | None, factor: float | None) -> Stat:
    if before is None or factor is None:
        return stat
    change = memory_text(factor)
    return replace(stat, before=formats.quantity(before), change=change, is_better=_is_better(1 / factor))


def _is_better(factor: float) -> bool | None:
    return None if abs(factor - 1) < SAME_WITHIN else factor > 1
