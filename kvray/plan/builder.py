"""`PlanBuilder`: from what a sweep found to a `Plan`. Rules come from measured facts only."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from kvray.analysis import Analysis
from kvray.analysis.aggregate import CellMetrics, Metrics, highest_peak_mib
from kvray.analysis.engine_best import EngineBest, unlike_weights
from kvray.analysis.intervals import Interval
from kvray.analysis.misses import nearest_misses
from kvray.analysis.ranking import Gain, RankedCandidate, Ranking, UnrankedTrial
from kvray.candidate import DeviceType
from kvray.errors import AllTrialsFailedError, LimitsMissedError
from kvray.plan.plan import (
    GainInterval,
    Plan,
    PlanFingerprint,
    PlannedBest,
    PlannedCandidate,
    PlannedConfidence,
    PlannedEngine,
    PlannedGain,
    PlannedMetrics,
    PlannedWinner,
)
from kvray.plan.rules import derive_rules
from kvray.plan.snippet import render_snippet
from kvray.probes.environment import kvray_version
from kvray.record import TrialRecord, TrialResult, version_fields
from kvray.store.manifest import SweepManifest


class TunedSweep(Protocol):
    """What a plan is made from; `TuningSearch.run()` returns one."""

    @property
    def results(self) -> Sequence[TrialResult]:
        """Every trial of the sweep."""

    @property
    def manifest(self) -> SweepManifest:
        """What the sweep was asked."""

    @property
    def analysis(self) -> Analysis:
        """What the results say."""

    @property
    def records_sha256(self) -> str:
        """Digest of the stored records."""


class PlanBuilder:
    """Turns the result of a sweep into a plan, and the plan into code."""

    def __init__(self, result: TunedSweep) -> None:
        self._result = result

    def build(self) -> Plan:
        """The plan of the sweep; its `created_at` is now.

        Raises:
            AllTrialsFailedError: nothing was measured completely, so there is no winner.
            LimitsMissedError: nothing keeps the profile's limits, so there is none either.
        """
        manifest, ranking = self._result.manifest, self._result.analysis.ranking
        if not ranking.entries:
            error = LimitsMissedError if nearest_misses(ranking, manifest.profile.limits) else AllTrialsFailedError
            raise error(f"Run {manifest.run_id!r} has no winner to plan for: no candidate is ranked.")
        device = DeviceType(manifest.device)
        rules = derive_rules(self._result.analysis, manifest.profile, device=device)
        winner = _winner(self._result.analysis)
        used = {winner.candidate.candidate_id, *winner.ties, *(rule.use for rule in rules)}
        table = _table(ranking, used)
        engine = winner.candidate.engine if winner.candidate.engine in manifest.other_engines else manifest.engine
        return Plan(
            kvray_version=kvray_version(),
            created_at=dt.datetime.now(dt.UTC),
            measured_at=manifest.measured_since,
            run_id=manifest.run_id,
            **_model_of(manifest, engine),
            engine=engine,
            other_engines={
                name: PlannedEngine(**_model_of(manifest, name))
                for name in manifest.engines
                if name != engine and any(one.candidate.engine == name for one in table.values())
            },
            engines={one.engine: _best(one) for one in self._result.analysis.engines},
            device=device,
            trust_remote_code=manifest.trust_remote_code,
            allow_pickle=manifest.allow_pickle,
            notes=(*manifest.model_notes, *filter(None, [unlike_weights(manifest, ranking)])),
            sent_models=manifest.sent_models,
            is_partial=manifest.is_complete is False,
            code_check=manifest.code_check_of(winner.candidate.candidate_id),
            profile=manifest.profile,
            winner=winner,
            baseline=_planned(ranking.baseline),
            candidates=table,
            rules=rules,
            fingerprint=_fingerprint(ranking.winner.record, manifest),
            records_sha256=self._result.records_sha256,
        )

    def generate_code_snippet(self) -> str:
        """Python source that applies the winner without kvray.

        Raises:
            AllTrialsFailedError, LimitsMissedError: as `build`.
        """
        return render_snippet(self.build())


def _model_of(manifest: SweepManifest, engine: str) -> dict[str, Any]:
    """The model as `engine` has it, as far as a plan tells it."""
    return {name: getattr(manifest.model_of(engine), name) for name in PlannedEngine.model_fields}


def _winner(analysis: Analysis) -> PlannedWinner:
    entry, confidence = analysis.ranking.winner, analysis.confidence
    return PlannedWinner(
        candidate=entry.record.candidate,
        threads=entry.record.threads,
        metrics=_metrics(entry.metrics, entry.cells),
        score=entry.score,
        gain=_gain(entry.gain) if entry.gain else None,
        confidence=PlannedConfidence(
            winner_share=confidence.winner_share,
            replicates=confidence.replicates,
            processes=confidence.processes,
            runs=confidence.runs,
            assumed_process_noise=confidence.assumed_process_noise,
            confirm_rounds=entry.gain.pairs if entry.gain else 0,
            is_disturbed=confidence.is_disturbed,
        )
        if confidence
        else None,
        ties=confidence.ties if confidence else (),
        break_even_tokens=entry.break_even_tokens,
    )


def _gain(gain: Gain) -> PlannedGain:
    return PlannedGain(
        ttft=gain.ttft,
        throughput=gain.throughput,
        memory=gain.memory,
        ttft_interval=_interval(gain.ttft_interval),
        throughput_interval=_interval(gain.throughput_interval),
    )


def _interval(interval: Interval | None) -> GainInterval | None:
    return None if interval is None else GainInterval(low=interval.low, high=interval.high)


def _planned(one: RankedCandidate | UnrankedTrial | None) -> PlannedCandidate | None:
    """`None` for what was not measured completely."""
    if one is None or one.metrics is None:
        return None
    return PlannedCandidate(candidate=one.record.candidate, metrics=_metrics(one.metrics, one.cells))


def _best(one: EngineBest) -> PlannedBest:
    return PlannedBest(
        candidate=one.best.record.candidate,
        metrics=_metrics(one.best.metrics, one.best.cells),
        default=_planned(one.default),
        gain=_gain(one.gain) if one.gain else None,
    )


def _table(ranking: Ranking, used: Iterable[str]) -> dict[str, PlannedCandidate]:
    table: dict[str, PlannedCandidate] = {}
    for one in ranking.listed:
        key = one.record.candidate_id
        if key in used and one.metrics is not None and key not in table:
            table[key] = PlannedCandidate(candidate=one.record.candidate, metrics=_metrics(one.metrics, one.cells))
    return table


def _metrics(metrics: Metrics, cells: Sequence[CellMetrics]) -> PlannedMetrics:
    return PlannedMetrics(
        ttft_ms=metrics.ttft_ms,
        itl_p50_ms=metrics.itl_p50_ms,
        itl_p95_ms=metrics.itl_p95_ms,
        itl_p99_ms=metrics.itl_p99_ms,
        decode_tok_s=metrics.decode_tok_s,
        peak_mib=metrics.peak_mib,
        highest_peak_mib=highest_peak_mib(cells),
    )


def _fingerprint(record: TrialRecord, manifest: SweepManifest) -> PlanFingerprint:
    return PlanFingerprint(
        device_name=record.device_name or manifest.device_name,
        driver_version=record.driver_version,
        engine_versions=record.versions,
        **version_fields(record.versions),
        kvray_version=record.kvray_version or manifest.kvray_version,
    )
