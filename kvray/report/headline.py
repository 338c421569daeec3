"""What a reader in a hurry takes away: the verdict, how sure it is, the winner's figures, and what to be careful of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvray.analysis import Analysis
from kvray.analysis.ranking import Ranking
from kvray.record import TrialResult, TrialStatus
from kvray.report.certainty import confidence_sentence
from kvray.report.disturbances import disturbances
from kvray.report.listing import NearestMiss
from kvray.report.notes import notes
from kvray.report.rows import Row
from kvray.report.stats import Stat, winner_stats
from kvray.report.verdict import Tone, tone, verdict
from kvray.store.manifest import SweepManifest


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The top of a report.

    Attributes:
        sentence: the verdict.
        tone: how it is coloured.
        confidence: how sure it is and what that rests on; empty when nothing is ranked.
        notes: what to be careful of, one sentence or two each.
        stats: the winner's figures; empty when nothing is ranked.
    """

    sentence: str
    tone: Tone
    confidence: str
    notes: tuple[str, ...]
    stats: tuple[Stat, ...]


def headline(
    manifest: SweepManifest,
    results: Sequence[TrialResult],
    analysis: Analysis,
    rows: Sequence[Row],
    nearest: Sequence[NearestMiss],
    set_aside: Sequence[TrialResult] = (),
) -> Headline:
    """The headline of a sweep whose ranking is `rows`, and whose `nearest` misses are those where nothing is ranked."""
    baseline, disturbed = analysis.ranking.baseline, disturbances(results)
    return Headline(
        sentence=verdict(manifest, results, analysis, rows, nearest, disturbed),
        tone=tone(manifest, rows, disturbed),
        confidence=_confidence(analysis, rows),
        notes=notes(manifest, results, analysis, rows, nearest, set_aside, disturbed),
        stats=winner_stats(rows[0], baseline.metrics if baseline else None) if rows else (),
    )


def _confidence(analysis: Analysis, rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    ranking = analysis.ranking
    return confidence_sentence(
        analysis.confidence,
        rows,
        stopped=_count(ranking, TrialStatus.STOPPED),
        skipped=_count(ranking, TrialStatus.SKIPPED),
    )


def _count(ranking: Ranking, status: TrialStatus) -> int:
    return sum(one.record.status is status for one in ranking.unranked)
