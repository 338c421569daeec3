"""What to use when the winner does not fit: measured candidates that need less memory, leanest last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvray.analysis.aggregate import CellMetrics, Metrics, highest_peak_mib
from kvray.analysis.limits import QUALITY
from kvray.analysis.pareto import MEMORY_STEP
from kvray.analysis.ranking import RankedCandidate, Ranking, UnrankedTrial
from kvray.ratios import leaner_text
from kvray.record import TrialRecord

MAX_FALLBACKS = 3


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """A measured candidate that ran with less peak memory than the one before it in the chain.

    Attributes:
        peak_mib: its highest peak over all cells: what must be free for any of them to run.
        cells: what it measured.
    """

    record: TrialRecord
    peak_mib: float
    reason: str
    metrics: Metrics | None = None
    cells: Sequence[CellMetrics] = ()


def fallback_chain(ranking: Ranking, start: RankedCandidate | None = None) -> tuple[Fallback, ...]:
    """Up to three candidates to try in turn when `start` (default: the winner) does not fit in memory.

    Each needs at least 2 % less than the one before it and is the best by utility of those that do. They have the batch
    size of `start` and measured every full-length cell. Those that were stopped late or miss a limit count; failures
    and those that lose more quality than allowed do not. Of a longer chain the first two and the leanest are kept.
    Empty without a winner or memory figures.
    """
    if not ranking.entries:
        return ()
    origin = start or ranking.winner
    pool = _options(ranking, origin)
    chain: list[Fallback] = []
    label, peak = origin.record.candidate.label, highest_peak_mib(origin.cells)
    while peak is not None and (option := _best_below(pool, peak * (1 - MEMORY_STEP))) is not None:
        chain.append(option.as_fallback(label, peak))
        label, peak = option.record.candidate.label, option.peak_mib
    return tuple(chain) if len(chain) <= MAX_FALLBACKS else (*chain[: MAX_FALLBACKS - 1], chain[-1])


@dataclass(frozen=True, kw_only=True)
class _Option:
    record: TrialRecord
    utility: float
    metrics: Metrics
    cells: Sequence[CellMetrics]
    peak_mib: float

    def as_fallback(self, before: str, peak_before: float) -> Fallback:
        return Fallback(
            record=self.record,
            peak_mib=self.peak_mib,
            reason=(
                f"Peaks at {self.peak_mib:,.0f} MiB, {leaner_text(self.peak_mib / peak_before)} {before}; "
                f"TTFT {self.metrics.ttft_ms:,.1f} ms, {self.metrics.decode_tok_s:,.1f} tok/s."
            ),
            metrics=self.metrics,
            cells=self.cells,
        )


def _options(ranking: Ranking, origin: RankedCandidate) -> tuple[_Option, ...]:
    """Measured candidates of `origin`'s batch size, one option each; a ranked entry goes before a stopped trial."""
    found: dict[str, _Option] = {}
    for one in ranking.listed:
        if one.metrics is None or one.utility is None or _loses_quality(one):
            continue
        peak = highest_peak_mib(one.cells)
        if peak is not None and one.record.batch_size == origin.record.batch_size:
            option = _Option(
                record=one.record, utility=one.utility, metrics=one.metrics, cells=one.cells, peak_mib=peak
            )
            found.setdefault(one.record.candidate_id, option)
    return tuple(found.values())


def _loses_quality(one: RankedCandidate | UnrankedTrial) -> bool:
    return isinstance(one, UnrankedTrial) and any(miss.limit_name == QUALITY for miss in one.misses)


def _best_below(options: Iterable[_Option], limit_mib: float) -> _Option | None:
    fitting = [option for option in options if option.peak_mib <= limit_mib]
    return min(fitting, key=lambda one: (-one.utility, one.peak_mib, one.record.candidate.label), default=None)
