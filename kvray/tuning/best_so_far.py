"""`BestSoFar`: which candidate leads a sweep that still runs, and by how much, computed as its ranking will be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kvray.analysis.aggregate import Metrics
from kvray.analysis.disturbed import resting_on_disturbed
from kvray.analysis.evidence import gather_evidence
from kvray.analysis.limits import missed_limits
from kvray.analysis.measured import Measured, order_of
from kvray.analysis.pooling import pool_complete_trials, quality_records
from kvray.analysis.ranking import Gain, gain_over, measured_gains
from kvray.record import Role, TrialResult
from kvray.workload import WorkloadProfile


@dataclass(frozen=True, kw_only=True)
class CandidateState:
    """A candidate that was measured completely, by all its processes.

    Attributes:
        label: as `TrialState` has it.
        gpu_type: on which it was measured, where the sweep measures on several.
        rests_on_disturbed: whether it has a cell without an undisturbed run.
    """

    label: str
    candidate_id: str
    metrics: Metrics
    utility: float
    keeps_limits: bool = True
    is_baseline: bool = False
    gpu_type: str | None = None
    rests_on_disturbed: bool = False

    @classmethod
    def of(cls, label: str, trials: Sequence[TrialResult], profile: WorkloadProfile) -> CandidateState | None:
        """What the `trials` of one candidate come to; `None` as long as none of them is complete."""
        pool = next(iter(pool_complete_trials(trials, profile).values()), None)
        if pool is None:
            return None
        quality_of = next(iter(quality_records(trials).values()), None)
        measured = Measured.of(pool, profile, quality_of=quality_of)
        return cls(
            label=label,
            candidate_id=measured.record.candidate_id,
            metrics=measured.metrics,
            utility=measured.utility,
            keeps_limits=not missed_limits(measured.record, measured.cells, profile.limits),
            is_baseline=any(one.record.role is Role.BASELINE for one in pool),
            gpu_type=measured.record.gpu_type,
            rests_on_disturbed=bool(resting_on_disturbed(pool)),
        )

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> CandidateState:
        """What `dataclasses.asdict` made of it."""
        return cls(**{**told, "metrics": Metrics(**told["metrics"])})

    @property
    def order(self) -> tuple[float, float, str]:
        """Sorts the best first, as the ranking does."""
        return (*order_of(self.utility, self.metrics), self.label)


@dataclass
class BestSoFar:
    """The completely measured candidates of a sweep, by label. Each type of GPU has a best one of its own.

    The report may recommend another one: of candidates that cannot be told apart the leaner or simpler, and the
    baseline where none is measurably better.
    """

    candidates: dict[str, CandidateState] = field(default_factory=dict)
    _trials: dict[str, dict[str, TrialResult]] = field(default_factory=dict)
    _profile: WorkloadProfile | None = None
    _gains: dict[str | None, Gain] = field(default_factory=dict)

    def take(self, label: str, result: TrialResult, profile: WorkloadProfile) -> None:
        """A trial of the candidate `label` has ended."""
        own = self._trials.setdefault(label, {})
        own[result.record.trial_id] = result
        self._profile = profile
        state = CandidateState.of(label, tuple(own.values()), profile)
        if state is not None:
            self.candidates[label] = state
            self._gains.clear()

    def best(self, gpu_type: str | None = None) -> CandidateState | None:
        """The first of those that keep the limits, of all types of GPU or of one."""
        own = self._of_type(gpu_type)
        some_have_peak = any(one.metrics.peak_mib is not None for one in own)
        ranked = [one for one in own if one.keeps_limits and not (some_have_peak and one.metrics.peak_mib is None)]
        return min(ranked, key=lambda one: one.order, default=None)

    def baseline(self, gpu_type: str | None = None) -> CandidateState | None:
        """The baseline on GPUs of this type, else of the best one's; `None` before one of its processes has ended
        well."""
        best = self.best(gpu_type)
        kind = best.gpu_type if gpu_type is None and best is not None else gpu_type
        return next((one for one in self._of_type(kind) if one.is_baseline), None)

    def gain(self, gpu_type: str | None = None) -> Gain | None:
        """The gain of the best over the baseline, without intervals; `None` with nothing to compare."""
        best, baseline = self.best(gpu_type), self.baseline(gpu_type)
        if best is None or baseline is None:
            return None
        found = self._gains.get(gpu_type)
        if found is None:
            found = self._gains[gpu_type] = self._gain(best, baseline)
        return found

    def json_of(self, labels: Sequence[str], gpu_types: Sequence[str]) -> dict[str, Any]:
        """The candidates `labels`, as far as they are known, and all gains, for `hear`."""
        gains = [(one, self.gain(one)) for one in (None, *gpu_types)]
        return {
            "candidates": [asdict(self.candidates[one]) for one in labels if one in self.candidates],
            "gains": [{"gpu_type": one, "gain": asdict(gain)} for one, gain in gains if gain is not None],
        }

    def hear(self, told: Mapping[str, Any]) -> None:
        """Take what `json_of` has told in another process."""
        for one in map(CandidateState.from_json, told.get("candidates", ())):
            self.candidates[one.label] = one
            self._gains.clear()
        for one in told.get("gains", ()):
            self._gains[one["gpu_type"]] = Gain(**one["gain"])

    def _of_type(self, gpu_type: str | None) -> list[CandidateState]:
        every = list(self.candidates.values())
        return every if gpu_type is None else [one for one in every if one.gpu_type == gpu_type]

    def _gain(self, best: CandidateState, baseline: CandidateState) -> Gain:
        """By the confirming rounds that measured both, if there are any. Which devices a round ran on, all that it
        measured tell together."""
        trials = [
            trial
            for one in self._of_type(best.gpu_type)
            if (own := tuple(self._trials.get(one.label, {}).values()))
            and (one in (best, baseline) or any(each.record.role is Role.CONFIRM for each in own))
            for trial in own
        ]
        if self._profile is None or not trials:
            return gain_over(baseline.metrics, best.metrics)
        metrics = {one.candidate_id: one.metrics for one in (best, baseline)}
        evidence = gather_evidence(trials, self._profile)
        found = measured_gains(metrics, baseline.candidate_id, evidence)[best.candidate_id]
        return replace(found, ttft_interval=None, throughput_interval=None)  # these rest on every candidate's noise
