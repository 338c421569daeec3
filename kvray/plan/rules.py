"""When to use something other than the winner: rules derived from what was measured, each with its evidence.

Requests are answered by the candidates measured at their batch size. Per batch size the best candidate leads; the
others replace it where they were measured to be better (a range of contexts), or where it does not fit (memory).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from kvray.analysis import Analysis
from kvray.analysis.aggregate import CellMetrics, Metrics, aggregate, highest_peak_mib
from kvray.analysis.choice import Reason
from kvray.analysis.fallback import Fallback, fallback_chain
from kvray.analysis.ranking import RankedCandidate, Ranking
from kvray.analysis.score import utility
from kvray.candidate import DeviceType
from kvray.plan.plan import Range, Rule, RuleCondition
from kvray.ratios import higher_text
from kvray.workload import WorkloadProfile

CONTEXT_ADVANTAGE = math.log(1.05)
"""Utility by which another candidate must lead at a context length before a rule names it."""


def derive_rules(analysis: Analysis, profile: WorkloadProfile, *, device: DeviceType) -> tuple[Rule, ...]:
    """Rules in the order in which they are tried; the last one names the winner and always holds.

    A model must fit before it can be fast, so memory rules come first (on CUDA only: elsewhere nothing is VRAM).
    Nothing is inferred for batch sizes and contexts that were not measured: there the winner serves.
    """
    leaders = _leaders(analysis.ranking)
    chains = [
        analysis.fallbacks if leader is analysis.ranking.winner else fallback_chain(analysis.ranking, leader)
        for leader in leaders
    ]
    several = len(leaders) > 1
    pairs = list(zip(leaders, chains, strict=True))
    rules: list[Rule] = []
    if device is DeviceType.CUDA:
        for leader, chain in pairs:
            rules += _memory_rules(leader, chain, several)
    if not _is_no_gain(analysis):
        for leader in leaders:
            rules += _context_rules(leader, analysis.ranking, profile)
    rules += (_batch_rule(leader, analysis.ranking) for leader in leaders[1:])
    for leader, chain in pairs:
        rules += _oom_rules(leader, chain, several)
    return (*rules, _default_rule(analysis.ranking))


def _is_no_gain(analysis: Analysis) -> bool:
    """Whether the baseline is kept because differences may be chance: those at one context are then no rule either."""
    return analysis.confidence is not None and analysis.confidence.choice.reason is Reason.NO_GAIN


def _leaders(ranking: Ranking) -> tuple[RankedCandidate, ...]:
    """The best ranked candidate of each batch size, the winner first, then by batch size."""
    leaders: dict[int, RankedCandidate] = {}
    for entry in ranking.entries:
        leaders.setdefault(entry.record.batch_size, entry)
    others = sorted((entry for entry in leaders.values() if entry.rank > 1), key=lambda one: one.record.batch_size)
    return (ranking.winner, *others)


def _memory_rules(leader: RankedCandidate, chain: Sequence[Fallback], several: bool) -> Iterator[Rule]:
    """From the leanest up: each candidate serves where the one that needs more memory does not fit."""
    peak = highest_peak_mib(leader.cells)
    if peak is None:
        return
    steps = [(leader.record.candidate.label, peak), *((one.record.candidate.label, one.peak_mib) for one in chain)]
    for (label, needed_mib), fallback in reversed(list(zip(steps, chain, strict=False))):
        yield Rule(
            when=RuleCondition(free_vram_mib=Range(max=needed_mib), batch_size=_batch(leader) if several else None),
            use=fallback.record.candidate_id,
            evidence=(
                f"{label} peaked at {needed_mib:,.0f} MiB; {fallback.record.candidate.label} ran every cell within "
                f"{fallback.peak_mib:,.0f} MiB."
            ),
        )


def _context_rules(leader: RankedCandidate, ranking: Ranking, profile: WorkloadProfile) -> Iterator[Rule]:
    """One rule per stretch of neighbouring measured contexts at which the same other candidate leads."""
    rivals = [one for one in ranking.entries if one.record.batch_size == leader.record.batch_size]
    best = [(context, _best_at(context, leader, rivals, profile)) for context in profile.context_lengths]
    for rank, stretch in itertools.groupby(best, key=lambda pair: pair[1].rank):
        if rank == leader.rank:
            continue
        pairs = list(stretch)
        first, last, rival = pairs[0][0], pairs[-1][0], pairs[0][1]
        yield Rule(
            when=RuleCondition(context_tokens=Range(min=first, max=last), batch_size=_batch(leader)),
            use=rival.record.candidate_id,
            evidence=_context_evidence(rival, leader, (first, last), profile),
        )


def _best_at(
    context: int, leader: RankedCandidate, rivals: Sequence[RankedCandidate], profile: WorkloadProfile
) -> RankedCandidate:
    """The candidate that leads at `context`; the `leader` unless another is clearly ahead of it there."""
    own = utility(_metrics_within(leader, (context, context)), profile)
    values = [(utility(_metrics_within(one, (context, context)), profile), one) for one in rivals]
    value, best = max(values, key=lambda pair: (pair[0], -pair[1].rank))
    return best if value - own > CONTEXT_ADVANTAGE else leader


def _metrics_within(entry: RankedCandidate, contexts: tuple[int, int]) -> Metrics:
    first, last = contexts
    cells: list[CellMetrics] = [one for one in entry.cells if first <= one.cell.context_tokens <= last]
    return aggregate(cells)


def _context_evidence(
    rival: RankedCandidate, leader: RankedCandidate, contexts: tuple[int, int], profile: WorkloadProfile
) -> str:
    ours, theirs = _metrics_within(rival, contexts), _metrics_within(leader, contexts)
    higher = higher_text(math.exp(utility(ours, profile) - utility(theirs, profile)))
    where = " to ".join(f"{context:,}" for context in dict.fromkeys(contexts))
    return (
        f"At {where} prompt tokens {rival.record.candidate.label} scored {higher} {leader.record.candidate.label}: "
        f"{_figures(ours)} against {_figures(theirs)}."
    )


def _batch_rule(leader: RankedCandidate, ranking: Ranking) -> Rule:
    size = leader.record.batch_size
    rivals = sum(one.record.batch_size == size for one in ranking.entries)
    return Rule(
        when=RuleCondition(batch_size=_batch(leader)),
        use=leader.record.candidate_id,
        evidence=f"Best of {rivals} ranked at batch size {size}: {_figures(leader.metrics)}.",
    )


def _oom_rules(leader: RankedCandidate, chain: Sequence[Fallback], several: bool) -> Iterator[Rule]:
    for fallback in chain:
        yield Rule(
            when=RuleCondition(on="oom", batch_size=_batch(leader) if several else None),
            use=fallback.record.candidate_id,
            evidence=fallback.reason,
        )


def _default_rule(ranking: Ranking) -> Rule:
    return Rule(
        when=RuleCondition(),
        use=ranking.winner.record.candidate_id,
        evidence=f"Winner of {len(ranking.entries)} ranked: {_figures(ranking.winner.metrics)}.",
    )


def _batch(entry: RankedCandidate) -> Range:
    return Range(min=entry.record.batch_size, max=entry.record.batch_size)


def _figures(metrics: Metrics) -> str:
    peak = "" if metrics.peak_mib is None else f", {metrics.peak_mib:,.0f} MiB"
    return f"TTFT {metrics.ttft_ms:,.1f} ms, {metrics.decode_tok_s:,.1f} tok/s{peak}"
