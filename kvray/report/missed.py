"""What was measured and misses a limit, as rows of a table: figures as in the ranking, and each miss in words."""

from __future__ import annotations

from dataclasses import dataclass

from kvray.analysis.aggregate import Metrics
from kvray.analysis.misses import NearMiss, nearest_misses
from kvray.analysis.ranking import Ranking
from kvray.report.formats import clean_line
from kvray.report.rows import label_of
from kvray.workload import Limits

_MOST = 10_000


@dataclass(frozen=True, kw_only=True)
class MissedRow:
    """A candidate that does not keep the limits. Figures are means over the cells, `None` where it was ended before it
    had measured them all; a limit is held against the worst cell, which `misses` names.

    Attributes:
        misses: each limit that is missed, in which cell and by how much.
        missed: names of these limits in `Limits`.
    """

    label: str
    is_baseline: bool
    ttft_ms: float | None
    itl_p95_ms: float | None
    decode_tok_s: float | None
    peak_mib: float | None
    misses: str
    missed: frozenset[str]


def missed_rows(ranking: Ranking, limits: Limits) -> tuple[MissedRow, ...]:
    """A row for each candidate that misses a limit and measured every cell, nearest to the limits first. Where nothing
    is ranked, candidates that were ended for a loss of quality are included."""
    metrics = {one.record.trial_id: one.metrics for one in ranking.unranked}
    near = nearest_misses(ranking, limits, at_most=_MOST)
    return tuple(
        _row(one, metrics.get(one.record.trial_id), is_baseline=one.record.candidate_id == ranking.baseline_id)
        for one in near
        if one.is_complete or not ranking.entries
    )


def _row(near: NearMiss, metrics: Metrics | None, *, is_baseline: bool) -> MissedRow:
    return MissedRow(
        label=label_of(near.record),
        is_baseline=is_baseline,
        ttft_ms=metrics.ttft_ms if metrics else None,
        itl_p95_ms=metrics.itl_p95_ms if metrics else None,
        decode_tok_s=metrics.decode_tok_s if metrics else None,
        peak_mib=metrics.peak_mib if metrics else None,
        misses=clean_line(near.text),
        missed=frozenset(miss.limit_name for miss in near.misses),
    )
