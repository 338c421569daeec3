"""The ranking for programs: one row for each candidate of a sweep, ranked or not, with figures that can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from kvray.analysis import Analysis
from kvray.analysis.evidence import DECODE, TTFT, Evidence, gather_evidence
from kvray.analysis.intervals import LogInterval, gain_intervals
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
    evidence = gather_evidence(results, manifest.profile)
    baseline_id = analysis.ranking.baseline_id
    ttft, decode = (_intervals(evidence, baseline_id, metric) for metric in (TTFT, DECODE))
    table = _Table(manifest=manifest, analysis=analysis, evidence=evidence, ttft=ttft, decode=decode)
    return tuple(table.row(one) for one in _one_each(analysis))


def _intervals(evidence: Evidence, baseline_id: str | None, metric: int) -> dict[str, LogInterval]:
    """Of every candidate that measured all cells; empty where the baseline did not."""
    if baseline_id is None or baseline_id not in evidence.ids:
        return {}
    return gain_intervals(evidence, evidence.ids, baseline_id, metric)


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
    ttft: Mapping[str, LogInterval]
    decode: Mapping[str, LogInterval]

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
            **_speedup("ttft", times.negated() if (times := self.ttft.get(record.candidate_id)) else None),
            **_speedup("decode", self.decode.get(record.candidate_id)),
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


def _speedup(name: str, logs: LogInterval | None) -> dict[str, Any]:
    """The ratio to the baseline; nothing where one of the two was not measured to the end."""
    found = logs.as_factor() if logs else None
    return {
        f"{name}_speedup": found and found.value,
        f"{name}_speedup_low": found and found.low,
        f"{name}_speedup_high": found and found.high,
    }
