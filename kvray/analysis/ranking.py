"""Order of the candidates: complete ones by score, all others listed with the reason why they are not ranked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kvray.analysis.aggregate import CellMetrics, Metrics
from kvray.analysis.evidence import DECODE, TTFT, Evidence, gather_evidence
from kvray.analysis.intervals import Interval, as_gains, gain_intervals, paired_rounds
from kvray.analysis.limits import Miss, missed_limits
from kvray.analysis.measured import Measured
from kvray.analysis.pareto import MEMORY_STEP, pareto_front
from kvray.analysis.pooling import Pools, missing_cells, pool_complete_trials, quality_records
from kvray.analysis.reasons import allowed_now_reason, status_reason
from kvray.analysis.score import ideal_utility, score
from kvray.ratios import SAME_WITHIN
from kvray.record import Role, TrialRecord, TrialResult, TrialStatus
from kvray.store.resuming import is_allowed_now
from kvray.workload import WorkloadProfile


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A candidate against the baseline, as relative changes; 0 is the same, positive is better.

    Attributes:
        ttft: `baseline TTFT / TTFT - 1`; 1.0 is a first token in half the time.
        throughput: `tok/s / baseline tok/s - 1`; 1.0 is twice the tokens per second.
        memory: `baseline peak / peak - 1`; 1.0 is half the memory. `None` where a peak is not known.
        pairs: confirming rounds in which both ran, one after the other on the same device. `ttft` and
            `throughput` rest on these alone; where there are none (0), on all processes of either.
        ttft_interval, throughput_interval: 95 % intervals; `None` where only the figures are known.
    """

    ttft: float
    throughput: float
    memory: float | None
    pairs: int = 0
    ttft_interval: Interval | None = None
    throughput_interval: Interval | None = None

    @property
    def memory_factor(self) -> float | None:
        """Peak memory as a multiple of the baseline's."""
        return None if self.memory is None else 1 / (1 + self.memory)

    @property
    def saves_memory(self) -> bool:
        """Whether it needs at least 2 % less memory than the baseline."""
        return self.memory_factor is not None and self.memory_factor <= 1 - MEMORY_STEP

    @property
    def is_better_in_something(self) -> bool:
        """Whether a figure of it reads better than the baseline's, be it by chance."""
        return self.saves_memory or max(self.ttft, self.throughput) >= SAME_WITHIN

    @property
    def is_measurable(self) -> bool:
        """Whether it is better in something by more than chance: an interval that excludes no change, or memory."""
        intervals = (self.ttft_interval, self.throughput_interval)
        return self.saves_memory or any(one is not None and one.low > 0 for one in intervals)


@dataclass(frozen=True, kw_only=True)
class RankedCandidate:
    """One complete candidate.

    Attributes:
        rank: 1 is the winner.
        record: of its baseline or search trial; confirming trials add runs, not entries.
        score: `100 * exp(utility - ideal utility)`; 100 would be the best of every metric at once.
        utility: weighted sum of logarithms (DESIGN: section 6).
        metrics: geometric means over `cells`, from the runs of all its complete trials.
        gain: against the baseline; `None` when there is no complete baseline.
        on_pareto_front: no other ranked candidate is at least as good in TTFT, throughput and memory and better in one.
        break_even_tokens: generated tokens after which cold costs beyond the baseline's are earned back;
            0 if there are none, `None` if they never are or cannot be told.
        extra_cold_s: these cold costs, in seconds; negative where the baseline's are higher, `None` where not known.
    """

    rank: int
    record: TrialRecord
    score: float
    utility: float
    metrics: Metrics
    cells: Sequence[CellMetrics]
    gain: Gain | None
    on_pareto_front: bool
    break_even_tokens: float | None
    extra_cold_s: float | None


@dataclass(frozen=True, kw_only=True)
class UnrankedTrial:
    """A trial that is listed and not ranked: it failed, was stopped or rejected, lacks a cell, or misses a limit.

    `utility`, `metrics` and `cells` are those of a candidate that measured every full-length cell all the same (it
    misses a limit, or was stopped late), else empty. `misses` are the limits for which a complete one is not ranked.
    """

    record: TrialRecord
    reason: str
    misses: tuple[Miss, ...] = ()
    utility: float | None = None
    metrics: Metrics | None = None
    cells: Sequence[CellMetrics] = ()


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """All trials of a sweep, best first, then those without a rank (by status, then label).

    Attributes:
        baseline_id: candidate that gains are against; `None` when no baseline is complete.
    """

    entries: tuple[RankedCandidate, ...]
    unranked: tuple[UnrankedTrial, ...]
    baseline_id: str | None = None

    @property
    def winner(self) -> RankedCandidate:
        """The first entry. Only call it when there are entries."""
        return self.entries[0]

    def led_by(self, candidate_id: str) -> Ranking:
        """The same with a ranked candidate put first."""
        order = sorted(self.entries, key=lambda entry: entry.record.candidate_id != candidate_id)
        numbered = enumerate(order, start=1)
        return replace(
            self, entries=tuple(one if one.rank == place else replace(one, rank=place) for place, one in numbered)
        )

    @property
    def listed(self) -> tuple[RankedCandidate | UnrankedTrial, ...]:
        """Everything, the ranked ones first."""
        return (*self.entries, *self.unranked)

    @property
    def baseline(self) -> RankedCandidate | UnrankedTrial | None:
        """The complete baseline, ranked or not."""
        for one in self.listed:
            if one.record.candidate_id == self.baseline_id and one.metrics is not None:
                return one
        return None


def rank(
    results: Sequence[TrialResult],
    profile: WorkloadProfile,
    evidence: Evidence | None = None,
    pools: Pools | None = None,
) -> Ranking:
    """Rank the candidates of a sweep by utility; equal ones by lower memory, then by label.

    Ranked are candidates with a trial that ended ok, measured every full-length cell of `profile` for their batch size,
    and keeps its limits. Several such trials of one candidate are pooled. The order of `results` does not matter.

    Args:
        evidence, pools: what `gather_evidence` and `pool_complete_trials` make of `results`, where the caller has it.
    """
    pools = pool_complete_trials(results, profile) if pools is None else pools
    qualities = quality_records(results)
    measured = {
        candidate_id: Measured.of(pool, profile, quality_of=qualities.get(candidate_id))
        for candidate_id, pool in pools.items()
    }
    misses = {key: missed_limits(one.record, one.cells, profile.limits) for key, one in measured.items()}
    obstacles = _obstacles(measured, misses)
    baseline = _find_baseline(results, measured)
    return Ranking(
        entries=_entries(measured, obstacles, baseline, evidence or gather_evidence(results, profile), profile),
        unranked=_sorted_unranked(
            (
                *(_unranked(one, obstacles[key], misses[key]) for key, one in measured.items() if key in obstacles),
                *_unpooled(results, pools, profile),
            )
        ),
        baseline_id=baseline.record.candidate_id if baseline else None,
    )


def _entries(
    measured: Mapping[str, Measured],
    obstacles: Mapping[str, str],
    baseline: Measured | None,
    evidence: Evidence,
    profile: WorkloadProfile,
) -> tuple[RankedCandidate, ...]:
    """The ranked ones. The ideal is over all complete candidates, whether they keep the limits or not."""
    ranked = sorted((one for key, one in measured.items() if key not in obstacles), key=lambda one: one.order)
    if not ranked:
        return ()
    ideal = ideal_utility((one.metrics for one in measured.values()), profile)
    front = pareto_front([one.metrics for one in ranked])
    gains = _gains(ranked, baseline, evidence) if baseline else [None] * len(ranked)
    return tuple(
        RankedCandidate(
            rank=place,
            record=one.record,
            score=score(one.utility, ideal),
            utility=one.utility,
            metrics=one.metrics,
            cells=one.cells,
            gain=gain,
            on_pareto_front=on_front,
            break_even_tokens=_break_even_tokens(one, baseline, gain),
            extra_cold_s=_extra_cold_s(one, baseline),
        )
        for place, (one, on_front, gain) in enumerate(zip(ranked, front, gains, strict=True), start=1)
    )


def _gains(measured: Sequence[Measured], baseline: Measured, evidence: Evidence) -> list[Gain]:
    metrics = {one.record.candidate_id: one.metrics for one in (*measured, baseline)}
    gains = measured_gains(metrics, baseline.record.candidate_id, evidence)
    return [gains[one.record.candidate_id] for one in measured]


def measured_gains(metrics: Mapping[str, Metrics], other_id: str, evidence: Evidence) -> dict[str, Gain]:
    """By candidate id, the gains over `other_id`, one of them, as processes show them: those of the same confirming
    round where there are any."""
    ttft, throughput = gain_intervals(evidence, metrics, other_id, (TTFT, DECODE))
    intervals = zip(
        as_gains([ttft[key].negated() for key in metrics]), as_gains([throughput[key] for key in metrics]), strict=True
    )
    return {
        key: Gain(
            ttft=of_ttft.value,
            throughput=of_throughput.value,
            memory=_memory_gain(metrics[other_id], one),
            pairs=0 if key == other_id else len(paired_rounds(evidence, key, other_id)),
            ttft_interval=of_ttft,
            throughput_interval=of_throughput,
        )
        for (key, one), (of_ttft, of_throughput) in zip(metrics.items(), intervals, strict=True)
    }


def gain_over(baseline: Metrics, metrics: Metrics) -> Gain:
    """The gain of `metrics` over `baseline`, from these figures alone."""
    return Gain(
        ttft=baseline.ttft_ms / metrics.ttft_ms - 1,
        throughput=metrics.decode_tok_s / baseline.decode_tok_s - 1,
        memory=_memory_gain(baseline, metrics),
    )


def _memory_gain(baseline: Metrics, metrics: Metrics) -> float | None:
    peaks = baseline.peak_mib, metrics.peak_mib
    return None if peaks[0] is None or peaks[1] is None else peaks[0] / peaks[1] - 1


def _find_baseline(results: Iterable[TrialResult], measured: Mapping[str, Measured]) -> Measured | None:
    ids = {result.record.candidate_id for result in results if result.record.role is Role.BASELINE}
    complete = [one for key, one in measured.items() if key in ids]
    return min(complete, key=lambda one: (one.record.batch_size, one.record.candidate_id), default=None)


def _break_even_tokens(one: Measured, baseline: Measured | None, gain: Gain | None) -> float | None:
    """Extra cold seconds over seconds saved per generated token. What a faster first token saves is left out."""
    if baseline is None or gain is None:
        return None
    if one.record.candidate_id == baseline.record.candidate_id:
        return 0.0
    extra_s = _extra_cold_s(one, baseline)
    if extra_s is None:
        return None
    if extra_s <= 0:
        return 0.0
    saved_s = (1 - 1 / (1 + gain.throughput)) / baseline.metrics.decode_tok_s
    return extra_s / saved_s if saved_s > 0 else None


def _extra_cold_s(one: Measured, baseline: Measured | None) -> float | None:
    if baseline is None or one.cold_s is None or baseline.cold_s is None:
        return None
    return one.cold_s - baseline.cold_s


def _unranked(one: Measured, reason: str, misses: tuple[Miss, ...] = ()) -> UnrankedTrial:
    return UnrankedTrial(
        record=one.record, reason=reason, misses=misses, utility=one.utility, metrics=one.metrics, cells=one.cells
    )


def _obstacles(measured: Mapping[str, Measured], misses: Mapping[str, Sequence[Miss]]) -> dict[str, str]:
    """Why a complete candidate is not ranked, by candidate id; absent if nothing stands in the way."""
    some_have_peak = any(one.metrics.peak_mib is not None for one in measured.values())
    found = {}
    for key, one in measured.items():
        told = [miss.text for miss in misses[key]]
        if some_have_peak and one.metrics.peak_mib is None:
            told.insert(0, "its peak memory was not measured, unlike that of others")
        if told:
            found[key] = "; ".join(told)
    return found


def _unpooled(
    results: Iterable[TrialResult], pools: Mapping[str, tuple[TrialResult, ...]], profile: WorkloadProfile
) -> Iterable[UnrankedTrial]:
    """Trials that did not end ok, or ended ok and lack a cell; not those of candidates that came further after all."""
    pooled = {trial.record.trial_id for pool in pools.values() for trial in pool}
    launched = {result.record.candidate_id for result in results if result.record.status.was_launched}
    overtaken = {
        TrialStatus.STOPPED: pools.keys(),
        TrialStatus.INTERRUPTED: pools.keys(),
        TrialStatus.SKIPPED: launched,
        TrialStatus.REJECTED: launched,
    }
    for result in results:
        record = result.record
        if record.trial_id in pooled or record.candidate_id in overtaken.get(record.status, ()):
            continue
        missing = missing_cells(result, profile)
        if result.record.status.is_cut_short and not missing:
            yield _unranked(Measured.of((result,), profile), status_reason(result.record))
        elif result.record.status is TrialStatus.OK and result.has_lost_its_runs:
            yield UnrankedTrial(record=result.record, reason="its raw runs are missing or cannot be read")
        elif result.record.status is TrialStatus.OK:
            cells = ", ".join(cell.label for cell in missing)
            yield UnrankedTrial(record=result.record, reason=f"not every cell was measured; missing: {cells}")
        elif is_allowed_now(record, profile.limits):
            yield UnrankedTrial(record=record, reason=allowed_now_reason(record))
        else:
            yield UnrankedTrial(record=result.record, reason=status_reason(result.record))


def _sorted_unranked(trials: Iterable[UnrankedTrial]) -> tuple[UnrankedTrial, ...]:
    statuses = list(TrialStatus)
    return tuple(
        sorted(
            trials,
            key=lambda one: (
                statuses.index(one.record.status),
                one.record.candidate.label,
                one.record.trial_id,
            ),
        )
    )
