"""The ranking for programs: one row for each candidate of a sweep, ranked or not, with figures that can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from kvray.analysis import Analysis
from kvray.analysis.evidence import DECODE, TTFT, Evidence, gather_evidence
from kvray.analysis.intervals import Interval, gain_interval
from kvray.analysis.ranking import RankedCandidate, UnrankedTrial
from kvray.candidate import Candidate
from kvray.record import TrialResult
from kvray.store.manifest import SweepManifest
from kvray.store.ranking_table import RankingRow

_Listed = RankedCandidate | UnrankedTrial


def ranking_file_rows(
    manifest: SweepManifest, results: Sequence[TrialResult], analysis: Analysis
) -> tuple[RankingRow, ...]:
    """The ranked ones first, best first; then the others in the order of the report."""
    table = _Table(manifest=manifest, analysis=analysis, evidence=gather_evidence(results, manifest.profile))
    return tuple(table.row(one) for one in _one_each(analysis))


def _one_each(analysis: Analysis) -> Sequence[_Listed]:
    """Of a candidate's trials the ranked one, else the one that came furthest."""
    order = sorted(analysis.ranking.unranked, key=lambda one: (one.metrics is None, one.record.rung is None))
    chosen: dict[str, _Listed] = {one.record.candidate_id: one for one in analysis.ranking.entries}
    for one in order:
        chosen.setdefault(one.record.candidate_id, one)
    return [one for one in analysis.ranking.listed if chosen[one.record.candidate_id] is one]


@dataclass(frozen=True, kw_only=True)
class _Table:
    manifest: SweepManifest
    analysis: Analysis
    evidence: Evidence

    def row(self, one: _Listed) -> RankingRow:
        record, ranked = one.record, one if isinstance(one, RankedCandidate) else None
        return RankingRow(
            run_id=self.manifest.run_id,
            model_id=self.manifest.model_id,
            profile=self.manifest.profile.name,
            device_name=self.manifest.device_name,
            rank=ranked.rank if ranked else None,
            is_baseline=record.candidate_id == (self.analysis.ranking.baseline_id or self.manifest.baseline_id),
            is_tied=ranked is not None and self._is_tied(ranked),
            candidate_id=record.candidate_id,
            label=record.candidate.label,
            **{spec.name: getattr(record, spec.name) for spec in fields(Candidate)},
            status=record.status,
            reason=one.reason if isinstance(one, UnrankedTrial) else None,
            limits_missed=tuple(miss.limit_name for miss in one.misses) if isinstance(one, UnrankedTrial) else (),
            score=ranked.score if ranked else None,
            **self._figures(one),
            **self._speedup(record.candidate_id, "ttft", TTFT),
            **self._speedup(record.candidate_id, "decode", DECODE),
            peak_ratio=self._peak_ratio(one),
            break_even_tokens=ranked.break_even_tokens if ranked else None,
            on_pareto_front=ranked.on_pareto_front if ranked else None,
            confidence=self._confidence if ranked and ranked.rank == 1 else None,
            kl_mean=record.kl_mean,
            top1_agreement=record.top1_agreement,
            processes=self._processes(record.candidate_id),
            runs=sum(cell.runs for cell in one.cells),
            fingerprint=record.fingerprint,
        )

    @property
    def _confidence(self) -> float | None:
        confidence = self.analysis.confidence
        return None if confidence is None or confidence.is_disturbed else confidence.winner_share

    def _is_tied(self, one: RankedCandidate) -> bool:
        ties = self.analysis.confidence.ties if self.analysis.confidence else ()
        return one.record.candidate_id in ties or (bool(ties) and one.rank == 1)

    def _figures(self, one: _Listed) -> dict[str, Any]:
        names = (
            "ttft_ms",
            "itl_p50_ms",
            "itl_p95_ms",
            "itl_p99_ms",
            "decode_tok_s",
            "peak_mib",
            "energy_j_per_tok",
        )
        return {name: getattr(one.metrics, name) if one.metrics else None for name in names}

    def _speedup(self, candidate_id: str, name: str, metric: int) -> dict[str, Any]:
        """Where the ratio to the baseline lies; nothing where one of the two was not measured to the end."""
        found = self._interval(candidate_id, metric)
        return {
            f"{name}_speedup": found and found.value,
            f"{name}_speedup_low": found and found.low,
            f"{name}_speedup_high": found and found.high,
        }

    def _interval(self, candidate_id: str, metric: int) -> Interval | None:
        baseline_id = self.analysis.ranking.baseline_id
        if baseline_id is None or not {candidate_id, baseline_id} <= set(self.evidence.ids):
            return None
        logs = gain_interval(self.evidence, candidate_id, baseline_id, metric)
        return (logs.negated() if metric == TTFT else logs).as_factor()

    def _peak_ratio(self, one: _Listed) -> float | None:
        baseline = self.analysis.ranking.baseline
        if one.metrics is None or baseline is None or baseline.metrics is None:
            return None
        own, before = one.metrics.peak_mib, baseline.metrics.peak_mib
        return None if own is None or not before else own / before

    def _processes(self, candidate_id: str) -> int:
        if candidate_id not in self.evidence.ids:
            return 0
        return int((self.evidence.owner == self.evidence.ids.index(candidate_id)).sum())
