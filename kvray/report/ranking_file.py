"""The ranking for programs: one row for each candidate of a sweep, ranked or not, with figures that can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from kvray.analysis import Analysis
from kvray.analysis.aggregate import Metrics, runs_behind
from kvray.analysis.intervals import Interval
from kvray.analysis.pooling import pool_complete_trials
from kvray.analysis.ranking import Gain, RankedCandidate, UnrankedTrial, gain_over
from kvray.candidate import Candidate
from kvray.record import TrialResult
from kvray.store.manifest import SweepManifest
from kvray.store.ranking_table import RankingRow

_Listed = RankedCandidate | UnrankedTrial
_FIGURES = ("ttft_ms", "itl_p50_ms", "itl_p95_ms", "itl_p99_ms", "decode_tok_s", "peak_mib", "energy_j_per_tok")


def ranking_file_rows(
    manifest: SweepManifest, results: Sequence[TrialResult], analysis: Analysis, *, hardware: str | None = None
) -> tuple[RankingRow, ...]:
    """The ranked candidates, best first; then the others in the order of the report. All are of one `hardware`."""
    pools = pool_complete_trials(results, manifest.profile)
    processes = {key: len(pool) for key, pool in pools.items()}
    table = _Table(manifest=manifest, analysis=analysis, processes=processes, hardware=hardware)
    return tuple(table.row(one) for one in _one_each(analysis))


def ratios_of(gain: Gain | None) -> dict[str, Any]:
    """A gain as multiples of the baseline's speed and memory, by the names of the ranking's columns: 1 is no change, 2
    is twice as fast or twice the memory."""
    if gain is None:
        return {**_speedup("ttft", None, None), **_speedup("decode", None, None), "peak_ratio": None, "pairs": 0}
    return {
        **_speedup("ttft", gain.ttft, gain.ttft_interval),
        **_speedup("decode", gain.throughput, gain.throughput_interval),
        "peak_ratio": gain.memory_factor,
        "pairs": gain.pairs,
    }


def _one_each(analysis: Analysis) -> Sequence[_Listed]:
    """The ranked one of a candidate's trials, else the one that came furthest."""
    order = sorted(analysis.ranking.unranked, key=lambda one: (one.metrics is None, one.record.rung is None))
    chosen: dict[str, _Listed] = {one.record.candidate_id: one for one in analysis.ranking.entries}
    for one in order:
        chosen.setdefault(one.record.candidate_id, one)
    return [one for one in analysis.ranking.listed if chosen[one.record.candidate_id] is one]


@dataclass(frozen=True, kw_only=True)
class _Table:
    """What rows are made from.

    Attributes:
        processes: by candidate id, those that count towards its figures.
    """

    manifest: SweepManifest
    analysis: Analysis
    processes: Mapping[str, int]
    hardware: str | None

    def row(self, one: _Listed) -> RankingRow:
        record = one.record
        return RankingRow(
            run_id=self.manifest.run_id,
            model_id=self.manifest.shown_model(),
            profile=self.manifest.profile.name,
            device_name=self.manifest.device_name,
            is_baseline=record.candidate_id == (self.analysis.ranking.baseline_id or self.manifest.baseline_id),
            candidate_id=record.candidate_id,
            label=record.candidate.label,
            **{spec.name: getattr(record, spec.name) for spec in fields(Candidate)},
            status=record.status,
            **(self._ranked(one) if isinstance(one, RankedCandidate) else _unranked(one)),
            **_figures(one.metrics),
            **ratios_of(self._gain(one)),
            kl_mean=record.kl_mean,
            kl_upper=record.kl_upper,
            top1_agreement=record.top1_agreement,
            processes=self.processes.get(record.candidate_id, 1 if one.cells else 0),
            runs=runs_behind(one.cells),
            fingerprint=record.fingerprint,
            hardware=self.hardware,
        )

    def _ranked(self, one: RankedCandidate) -> dict[str, Any]:
        confidence = self.analysis.confidence
        ties = confidence.ties if confidence else ()
        return {
            "rank": one.rank,
            "is_tied": one.record.candidate_id in ties or (bool(ties) and one.rank == 1),
            "reason": None,
            "limits_missed": (),
            "score": one.score,
            "break_even_tokens": one.break_even_tokens,
            "on_pareto_front": one.on_pareto_front,
            "confidence": confidence.winner_share
            if confidence and one.rank == 1 and not confidence.is_disturbed
            else None,
        }

    def _gain(self, one: _Listed) -> Gain | None:
        """The gain of a candidate that is not ranked, by its figures alone."""
        if isinstance(one, RankedCandidate):
            return one.gain
        baseline = self.analysis.ranking.baseline
        if one.metrics is None or baseline is None or baseline.metrics is None:
            return None
        return gain_over(baseline.metrics, one.metrics)


def _figures(metrics: Metrics | None) -> dict[str, Any]:
    return {name: getattr(metrics, name) if metrics else None for name in _FIGURES}


def _unranked(one: UnrankedTrial) -> dict[str, Any]:
    return {
        "rank": None,
        "is_tied": False,
        "reason": one.reason,
        "limits_missed": tuple(miss.limit_name for miss in one.misses),
        "score": None,
        "break_even_tokens": None,
        "on_pareto_front": None,
        "confidence": None,
    }


def _speedup(name: str, gain: float | None, interval: Interval | None) -> dict[str, Any]:
    return {
        f"{name}_speedup": None if gain is None else 1 + gain,
        f"{name}_speedup_low": None if interval is None else 1 + interval.low,
        f"{name}_speedup_high": None if interval is None else 1 + interval.high,
    }
