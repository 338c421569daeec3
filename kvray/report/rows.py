"""The ranking as rows of a table, and what stands beside it per candidate: cold costs, what ran, quality."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvray.analysis import Analysis
from kvray.analysis.aggregate import runs_behind
from kvray.analysis.intervals import Interval
from kvray.analysis.pooling import pool_complete_trials
from kvray.analysis.ranking import Gain, gain_over
from kvray.ratios import MISSING
from kvray.record import TrialRecord, TrialResult
from kvray.report.formats import clean_line, rounded_count
from kvray.workload import WorkloadProfile

NEVER = "never"
UNPAIRED = "*"
APART = "†"
APART_TEXT = "all processes (score, TTFT, tok/s) and the confirming rounds (speed) differ by more than 2 %"
_APART_FROM = 0.02
"""Relative difference from which a reader who divides the shown figures wonders why the gain is another one."""
_NEVER_TOKENS = 1e18


@dataclass(frozen=True, kw_only=True)
class Row:
    """One ranked candidate. Units are in the names.

    Attributes:
        score_ratios: of every candidate, see `score_ratio`.
        gain: against the baseline; `None` without one.
        is_tied: cannot be told apart from the winner (the winner itself included, when anything ties with it).
        figures_gain: the same from the shown figures alone, which are of all processes; `gain` may rest on fewer.
        score_is_apart: whether the gains lead to clearly another score, compared with the baseline's, than the figures.
        is_unpaired: others were compared with the baseline in confirming rounds, this one was not.
        extra_cold_s: seconds of loading, compiling and warming up beyond the baseline's; `None` where not known.
        processes: fresh processes that measured it.
        runs: timed runs behind its metrics.
    """

    rank: int
    candidate_id: str
    engine: str
    label: str
    score: float
    score_ratios: Mapping[str, Interval] = field(repr=False, compare=False)
    ttft_ms: float
    itl_p50_ms: float
    itl_p95_ms: float
    itl_p99_ms: float
    decode_tok_s: float
    peak_mib: float | None
    kv_cache_mib: float | None
    gain: Gain | None
    figures_gain: Gain | None
    score_is_apart: bool
    on_pareto_front: bool
    break_even_tokens: float | None
    extra_cold_s: float | None
    energy_j_per_tok: float | None
    is_winner: bool
    is_baseline: bool
    is_tied: bool
    is_unpaired: bool
    processes: int
    runs: int

    @property
    def score_ratio(self) -> Interval | None:
        """95 % interval of its score as a multiple of the winner's; `None` where that was not computed."""
        return self.score_ratios.get(self.candidate_id)

    @property
    def ttft_gain(self) -> float | None:
        """How much faster its first token comes than the baseline's; 1.0 is twice as fast."""
        return self.gain.ttft if self.gain else None

    @property
    def throughput_gain(self) -> float | None:
        """How many more tok/s it generates than the baseline; 1.0 is twice as many."""
        return self.gain.throughput if self.gain else None

    @property
    def memory_factor(self) -> float | None:
        """Its peak as a multiple of the baseline's."""
        return self.gain.memory_factor if self.gain else None

    @property
    def ttft_is_apart(self) -> bool:
        """Whether the gain of the first token is clearly another one than the shown times have."""
        return self.figures_gain is not None and self._is_apart(self.ttft_gain, self.figures_gain.ttft)

    @property
    def throughput_is_apart(self) -> bool:
        """The same of tok/s."""
        return self.figures_gain is not None and self._is_apart(self.throughput_gain, self.figures_gain.throughput)

    @property
    def score_mark(self) -> str:
        """Follows a score that the gains would not lead to."""
        return APART if self.score_is_apart else ""

    @property
    def ttft_mark(self) -> str:
        """Follows a gain that no confirming round measured, where others were, or that is apart from the figures."""
        return UNPAIRED if self.is_unpaired else APART if self.ttft_is_apart else ""

    @property
    def throughput_mark(self) -> str:
        """The same of tok/s."""
        return UNPAIRED if self.is_unpaired else APART if self.throughput_is_apart else ""

    def _is_apart(self, gain: float | None, of_figures: float) -> bool:
        if gain is None or self.gain is None or not self.gain.pairs:
            return False
        return abs((1 + gain) / (1 + of_figures) - 1) > _APART_FROM

    @property
    def break_even(self) -> str:
        """Generated tokens after which a longer load and warm-up are made up for, or `never`. A dash where there is
        nothing to make up for and where it cannot be told."""
        if self.is_baseline or self.throughput_gain is None or self.extra_cold_s is None or self.extra_cold_s <= 0:
            return MISSING
        if self.throughput_gain <= 0:
            return NEVER
        return rounded_count(None if self.break_even_tokens is None else max(1.0, self.break_even_tokens))

    @property
    def break_even_order(self) -> float | None:
        """A number by which `break_even` can be sorted; `None` for a dash."""
        if self.break_even == NEVER:
            return _NEVER_TOKENS
        return None if self.break_even == MISSING else self.break_even_tokens


@dataclass(frozen=True, kw_only=True)
class ColdCost:
    """What a candidate costs before it is warm, in seconds.

    Attributes:
        cold_s: the part of them beyond the cost of steady calls, load included: what must be made up.
        warmed_up: whether it became steady at all; `None` where that was not recorded.
    """

    label: str
    load_s: float | None
    first_call_s: float | None
    warmup_s: float | None
    compile_s: float | None
    cold_s: float | None
    warmed_up: bool | None


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What was seen to run, the same for all of `labels`; `None` where the engine cannot tell."""

    labels: tuple[str, ...]
    cache_class: str | None
    cache_layers: str | None
    kernel_prefill: str | None
    kernel_decode: str | None
    graph_breaks: int | None
    recompiles: int | None


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How far a candidate's output strays from the reference.

    Attributes:
        kl_upper, nll_delta_upper: upper bounds, where `kl_mean` and `nll_delta` are lower bounds; `None` where these
            are exact.
    """

    label: str
    kl_mean: float | None
    nll_delta: float | None
    nll_delta_se: float | None
    top1_agreement: float | None
    kl_upper: float | None = None
    nll_delta_upper: float | None = None


def ranking_rows(
    analysis: Analysis, results: Sequence[TrialResult], profile: WorkloadProfile, baseline_id: str
) -> tuple[Row, ...]:
    """The ranked candidates, best first."""
    processes = _processes(results, profile)
    ties = set(analysis.confidence.ties) if analysis.confidence else set()
    score_ratios = analysis.confidence.score_ratios if analysis.confidence else {}
    has_pairs = any(entry.gain and entry.gain.pairs for entry in analysis.ranking.entries)
    baseline = analysis.ranking.baseline
    before = None if baseline is None else baseline.metrics
    rows = []
    for entry in analysis.ranking.entries:
        candidate_id, metrics, gain = entry.record.candidate_id, entry.metrics, entry.gain
        of_figures = None if before is None else gain_over(before, metrics)
        rows.append(
            Row(
                rank=entry.rank,
                candidate_id=candidate_id,
                engine=clean_line(entry.record.candidate.engine),
                label=label_of(entry.record),
                score=entry.score,
                score_ratios=score_ratios,
                ttft_ms=metrics.ttft_ms,
                itl_p50_ms=metrics.itl_p50_ms,
                itl_p95_ms=metrics.itl_p95_ms,
                itl_p99_ms=metrics.itl_p99_ms,
                decode_tok_s=metrics.decode_tok_s,
                peak_mib=metrics.peak_mib,
                kv_cache_mib=entry.record.kv_cache_mib,
                gain=gain,
                figures_gain=of_figures,
                score_is_apart=_is_score_apart(gain, of_figures, profile),
                on_pareto_front=entry.on_pareto_front,
                break_even_tokens=entry.break_even_tokens,
                extra_cold_s=entry.extra_cold_s,
                energy_j_per_tok=metrics.energy_j_per_tok,
                is_winner=entry.rank == 1,
                is_baseline=candidate_id == baseline_id,
                is_tied=candidate_id in ties or (bool(ties) and entry.rank == 1),
                is_unpaired=has_pairs and gain is not None and not gain.pairs and candidate_id != baseline_id,
                processes=processes.get(candidate_id, 0),
                runs=runs_behind(entry.cells),
            )
        )
    return tuple(rows)


def _processes(results: Sequence[TrialResult], profile: WorkloadProfile) -> dict[str, int]:
    """By candidate id, how many processes measured a ranked candidate. One of a single trial has that one's."""
    trials = Counter(one.record.candidate_id for one in results)
    several = [one for one in results if trials[one.record.candidate_id] > 1]
    return {**trials, **{key: len(pool) for key, pool in pool_complete_trials(several, profile).items()}}


def _is_score_apart(gain: Gain | None, of_figures: Gain | None, profile: WorkloadProfile) -> bool:
    if gain is None or of_figures is None or not gain.pairs:
        return False
    apart = profile.weight_ttft * math.log((1 + gain.ttft) / (1 + of_figures.ttft))
    apart += profile.weight_throughput * math.log((1 + gain.throughput) / (1 + of_figures.throughput))
    return abs(math.exp(apart) - 1) > _APART_FROM


def cold_costs(analysis: Analysis) -> tuple[ColdCost, ...]:
    """The cold costs of every candidate that got far enough to have one, in ranking order."""
    costs = (
        ColdCost(
            label=label_of(record),
            load_s=record.load_s,
            first_call_s=record.first_call_s,
            warmup_s=record.warmup_s,
            compile_s=record.compile_s,
            cold_s=record.cold_s,
            warmed_up=record.warmed_up,
        )
        for record in _records(analysis)
    )
    return tuple(
        cost
        for cost in costs
        if any(value is not None for value in (cost.load_s, cost.first_call_s, cost.warmup_s, cost.compile_s))
    )


def observations(analysis: Analysis) -> tuple[Observation, ...]:
    """What ran, one for each way of running, in ranking order."""
    labels: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for record in _records(analysis):
        seen = (record.cache_class, record.cache_layers, record.kernel_prefill, record.kernel_decode)
        if any(seen):
            labels[(*map(_line, seen), record.graph_breaks, record.recompiles)].append(label_of(record))
    return tuple(
        Observation(
            labels=tuple(dict.fromkeys(names)),
            cache_class=cache_class,
            cache_layers=cache_layers,
            kernel_prefill=kernel_prefill,
            kernel_decode=kernel_decode,
            graph_breaks=graph_breaks,
            recompiles=recompiles,
        )
        for (cache_class, cache_layers, kernel_prefill, kernel_decode, graph_breaks, recompiles), names in (
            labels.items()
        )
    )


def qualities(analysis: Analysis) -> tuple[Quality, ...]:
    """The quality of every candidate for which it was measured, in ranking order."""
    rows = (
        Quality(
            label=label_of(record),
            kl_mean=record.kl_mean,
            nll_delta=record.nll_delta,
            nll_delta_se=record.nll_delta_se,
            top1_agreement=record.top1_agreement,
            kl_upper=record.kl_upper,
            nll_delta_upper=record.nll_delta_upper,
        )
        for record in _records(analysis)
    )
    return tuple(row for row in rows if (row.kl_mean, row.nll_delta, row.top1_agreement) != (None, None, None))


def label_of(record: TrialRecord) -> str:
    """The candidate's label, safe to show."""
    return clean_line(record.candidate.label)


def _records(analysis: Analysis) -> Iterator[TrialRecord]:
    yield from (entry.record for entry in analysis.ranking.entries)
    yield from (trial.record for trial in analysis.ranking.unranked)


def _line(text: str | None) -> str | None:
    return clean_line(text) if text else None
