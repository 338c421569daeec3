"""The ranking as rows of a table, and what stands beside it per candidate: cold costs, what ran, quality."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kvray.analysis import Analysis
from kvray.analysis.pooling import pool_complete_trials
from kvray.record import TrialRecord, TrialResult
from kvray.report.formats import MISSING, clean_line, rounded_count
from kvray.workload import WorkloadProfile

AT_ONCE = "at once"
NEVER = "never"
_NEVER_TOKENS = 1e18


@dataclass(frozen=True, kw_only=True)
class Row:
    """One ranked candidate. Units are in the names; gains are relative to the baseline, `None` without one.

    Attributes:
        memory_saved: share of the baseline's peak that it does without; negative when it needs more.
        is_tied: cannot be told apart from the winner (the winner itself included, when anything ties with it).
        processes: fresh processes that measured it.
        runs: timed runs behind its metrics.
    """

    rank: int
    candidate_id: str
    label: str
    score: float
    ttft_ms: float
    itl_p50_ms: float
    itl_p95_ms: float
    itl_p99_ms: float
    decode_tok_s: float
    peak_mib: float | None
    kv_cache_mib: float | None
    ttft_gain: float | None
    throughput_gain: float | None
    memory_saved: float | None
    on_pareto_front: bool
    break_even_tokens: float | None
    energy_j_per_tok: float | None
    is_winner: bool
    is_baseline: bool
    is_tied: bool
    processes: int
    runs: int

    @property
    def pays_after(self) -> str:
        """Generated tokens after which it is worth its cold costs, `at once` or `never`; a dash for the baseline and
        where it cannot be told."""
        if self.is_baseline or self.throughput_gain is None:
            return MISSING
        if self.throughput_gain <= 0:
            return NEVER
        tokens = self.break_even_tokens
        return AT_ONCE if tokens is not None and tokens < 1 else rounded_count(tokens)

    @property
    def pays_after_order(self) -> float | None:
        """A number by which `pays_after` can be sorted; `None` where it cannot be told."""
        if self.pays_after == NEVER:
            return _NEVER_TOKENS
        return None if self.pays_after == MISSING else self.break_even_tokens


@dataclass(frozen=True, kw_only=True)
class ColdCost:
    """What a candidate costs before it is warm, in seconds.

    Attributes:
        cold_s: of these, what is beyond the cost of steady calls, load included: what must be earned back.
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
    """How far a candidate's output strays from the reference."""

    label: str
    kl_mean: float | None
    nll_delta: float | None
    nll_delta_se: float | None
    top1_agreement: float | None


def ranking_rows(
    analysis: Analysis, results: Sequence[TrialResult], profile: WorkloadProfile, baseline_id: str
) -> tuple[Row, ...]:
    """The ranked candidates, best first."""
    pools = pool_complete_trials(results, profile)
    ties = set(analysis.confidence.ties) if analysis.confidence else set()
    rows = []
    for entry in analysis.ranking.entries:
        candidate_id, metrics, gain = entry.record.candidate_id, entry.metrics, entry.gain
        rows.append(
            Row(
                rank=entry.rank,
                candidate_id=candidate_id,
                label=label_of(entry.record),
                score=entry.score,
                ttft_ms=metrics.ttft_ms,
                itl_p50_ms=metrics.itl_p50_ms,
                itl_p95_ms=metrics.itl_p95_ms,
                itl_p99_ms=metrics.itl_p99_ms,
                decode_tok_s=metrics.decode_tok_s,
                peak_mib=metrics.peak_mib,
                kv_cache_mib=entry.record.kv_cache_mib,
                ttft_gain=gain.ttft if gain else None,
                throughput_gain=gain.throughput if gain else None,
                memory_saved=_saved(gain.memory) if gain else None,
                on_pareto_front=entry.on_pareto_front,
                break_even_tokens=entry.break_even_tokens,
                energy_j_per_tok=metrics.energy_j_per_tok,
                is_winner=entry.rank == 1,
                is_baseline=candidate_id == baseline_id,
                is_tied=candidate_id in ties or (bool(ties) and entry.rank == 1),
                processes=len(pools.get(candidate_id, ())),
                runs=sum(cell.runs for cell in entry.cells),
            )
        )
    return tuple(rows)


def cold_costs(analysis: Analysis) -> tuple[ColdCost, ...]:
    """Of every candidate that got far enough to have one, in ranking order."""
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
    """Of every candidate of which it was measured, in ranking order."""
    rows = (
        Quality(
            label=label_of(record),
            kl_mean=record.kl_mean,
            nll_delta=record.nll_delta,
            nll_delta_se=record.nll_delta_se,
            top1_agreement=record.top1_agreement,
        )
        for record in _records(analysis)
    )
    return tuple(row for row in rows if (row.kl_mean, row.nll_delta, row.top1_agreement) != (None, None, None))


def _saved(memory_gain: float | None) -> float | None:
    return None if memory_gain is None else memory_gain / (1 + memory_gain)


def label_of(record: TrialRecord) -> str:
    """The candidate's label, safe to show."""
    return clean_line(record.candidate.label)


def _records(analysis: Analysis) -> Iterator[TrialRecord]:
    yield from (entry.record for entry in analysis.ranking.entries)
    yield from (trial.record for trial in analysis.ranking.unranked)


def _line(text: str | None) -> str | None:
    return clean_line(text) if text else None
