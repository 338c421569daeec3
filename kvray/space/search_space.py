"""From axes to candidates: the product of all axes, each point either kept or rejected with its reason."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, CompileMode, DType
from kvray.space.constraints import RULES, Rule, SpaceFacts, first_objection


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The values that each field of a candidate may take."""

    caches: tuple[CacheStrategy, ...]
    attentions: tuple[AttentionBackend, ...]
    dtypes: tuple[DType, ...]
    compiles: tuple[CompileMode, ...] = (CompileMode.OFF,)
    batch_sizes: tuple[int, ...] = (1,)


@dataclass(frozen=True, kw_only=True)
class RejectedCandidate:
    """A point of the space that is not launched, and why."""

    candidate: Candidate
    reason: str


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """What will be measured, baseline first, and what will not.

    Attributes:
        candidates: baseline, then the others in the order of the axes.
        asked_for: how many of `candidates` the axes ask for; the baseline is measured even where they do not.
    """

    baseline: Candidate
    candidates: tuple[Candidate, ...]
    rejected: tuple[RejectedCandidate, ...]
    asked_for: int


def build_space(
    axes: Axes, *, baseline: Candidate, facts: SpaceFacts, engine_rules: Sequence[Rule] = ()
) -> SearchSpace:
    """Enumerate `axes` for the baseline's engine; the baseline is part of the space whatever the axes say."""
    rules = (*RULES, *engine_rules)
    kept: list[Candidate] = [baseline]
    rejected: list[RejectedCandidate] = []
    asked_for = 0
    for candidate in _product(axes, baseline.engine):
        reason = first_objection(candidate, facts, rules)
        if reason is not None:
            rejected.append(RejectedCandidate(candidate=candidate, reason=reason))
            continue
        asked_for += 1
        if candidate != baseline:
            kept.append(candidate)
    return SearchSpace(baseline=baseline, candidates=tuple(kept), rejected=tuple(rejected), asked_for=asked_for)


def _product(axes: Axes, engine: str) -> list[Candidate]:
    return [
        Candidate(
            engine=engine, cache=cache, attention=attention, dtype=dtype, compile=compile_mode, batch_size=batch_size
        )
        for batch_size, dtype, compile_mode, cache, attention in itertools.product(
            axes.batch_sizes, axes.dtypes, axes.compiles, axes.caches, axes.attentions
        )
    ]
