"""What is told of each engine where a sweep has several: its best candidate against what it does with nothing set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvray.analysis.engine_best import EngineBest
from kvray.analysis.intervals import Interval
from kvray.analysis.ranking import RankedCandidate, UnrankedTrial
from kvray.ratios import MISSING, amount_sign, speed_sign_interval_text
from kvray.report import formats
from kvray.report.rows import label_of
from kvray.report.stats import gain_phrases

OWN_DEFAULT = "own default"
NOTE = (
    "The best candidate of each engine, compared with what the same engine does with nothing set: by the confirming "
    "rounds that had both in them, else by all processes. In brackets: 95 % intervals."
)


@dataclass(frozen=True, kw_only=True)
class EngineRow:
    """The best ranked candidate of one engine.

    Attributes:
        default: the label of what the engine does with nothing set; `None` where it was not measured completely.
        ttft_gain, throughput_gain, memory: over `default`, the first two with their 95 % intervals.
        sentence: the same gains in words, for a place that is headed by the engine's name.
    """

    engine: str
    label: str
    is_winner: bool
    default: str | None
    ttft_ms: float
    decode_tok_s: float
    peak_mib: float | None
    ttft_gain: str
    throughput_gain: str
    memory: str
    sentence: str


def engine_rows(engines: Sequence[EngineBest]) -> tuple[EngineRow, ...]:
    """One for each engine that is ranked; empty where one engine was asked alone."""
    return tuple(map(_row, engines))


def engine_sentence(engines: Sequence[EngineBest], first: str) -> str:
    """Which engine won where that is not the `first` one, with its figures beside those of the best of the first."""
    winner = next((one for one in engines if one.best.rank == 1), None)
    own = next((one for one in engines if one.engine == first), None)
    if winner is None or winner.engine == first:
        return ""
    won = f" The engine {formats.clean_line(winner.engine)} wins"
    if own is None:
        return f"{won}; nothing of {formats.clean_line(first)} is ranked."
    return (
        f"{won}: first token in {_figures(winner)}, where the best of {formats.clean_line(first)} has {_figures(own)}. "
        f"That is {label_of(own.best.record)}{_against_default(own)}."
    )


def _figures(one: EngineBest) -> str:
    """Figures of all processes, as the ranking has them: `162 ms and 26.7 tok/s`."""
    metrics = one.best.metrics
    return f"{formats.quantity(metrics.ttft_ms)} ms and {formats.quantity(metrics.decode_tok_s)} tok/s"


def _against_default(one: EngineBest, *, with_intervals: bool = False) -> str:
    if one.is_default:
        return ", its own default"
    if one.gain is None or one.default is None:
        return ""
    gains = formats.listed(gain_phrases(one.gain, with_intervals=with_intervals))
    return f": {gains} compared with its own default {_bare(one, one.default)}"


def _bare(one: EngineBest, what: RankedCandidate | UnrankedTrial) -> str:
    """The label without the engine's name, which is told beside it."""
    return label_of(what.record).removeprefix(f"{formats.clean_line(one.engine)}:")


def _row(one: EngineBest) -> EngineRow:
    ttft, throughput, memory = _gains(one)
    return EngineRow(
        engine=formats.clean_line(one.engine),
        label=label_of(one.best.record),
        is_winner=one.best.rank == 1,
        default=None if one.default is None else label_of(one.default.record),
        ttft_ms=one.best.metrics.ttft_ms,
        decode_tok_s=one.best.metrics.decode_tok_s,
        peak_mib=one.best.metrics.peak_mib,
        ttft_gain=ttft,
        throughput_gain=throughput,
        memory=memory,
        sentence=f"{_bare(one, one.best)}{_against_default(one, with_intervals=True)}",
    )


def _gains(one: EngineBest) -> Iterator[str]:
    """Changes of first token, tok/s and memory."""
    gain = one.gain
    if gain is None or one.is_default:
        yield from [OWN_DEFAULT if one.is_default else MISSING] * 3
        return
    yield f"{formats.speed_gain(gain.ttft)}{_interval(gain.ttft, gain.ttft_interval)}"
    yield f"{formats.speed_gain(gain.throughput)}{_interval(gain.throughput, gain.throughput_interval)}"
    yield amount_sign(gain.memory_factor)


def _interval(gain: float, interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f" ({speed_sign_interval_text(1 + gain, 1 + interval.low, 1 + interval.high)})"
