"""From axes to candidates: each point of a product of axes is either kept or rejected with its reason."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from kvray.candidate import AttentionChoice, CacheChoice, Candidate, CompileMode, DType
from kvray.errors import InvalidValueError
from kvray.space.constraints import RULES, Constraint, SpaceFacts, first_objection

MOST_CANDIDATES = 20_000
"""Most points of a space, rejected ones included. The full space of a GPU has three thousand per batch size."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """A block of a space: the values that each field of a candidate may take, in every combination."""

    caches: tuple[CacheChoice, ...]
    attentions: tuple[AttentionChoice, ...]
    dtypes: tuple[DType, ...]
    compiles: tuple[CompileMode, ...] = (CompileMode.OFF,)
    prefill_chunks: tuple[int | None, ...] = (None,)
    weights_limits_mib: tuple[int | None, ...] = (None,)
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
        candidates: baseline, then the others in the order of the blocks and their axes.
        asked_for: how many of `candidates` the blocks ask for; the baseline is measured even where they do not.
    """

    baseline: Candidate
    candidates: tuple[Candidate, ...]
    rejected: tuple[RejectedCandidate, ...]
    asked_for: int


def build_space(
    blocks: Sequence[Axes], *, baseline: Candidate, facts: SpaceFacts, engine_rules: Sequence[Constraint] = ()
) -> SearchSpace:
    """Enumerate `blocks` for the baseline's engine, what several have once; the baseline is part of the space whatever
    they say.

    Raises:
        InvalidValueError: they have more than `MOST_CANDIDATES` points.
    """
    _check_size(blocks)
    rules = (*RULES, *engine_rules)
    kept: list[Candidate] = [baseline]
    rejected: list[RejectedCandidate] = []
    asked_for = 0
    for candidate in dict.fromkeys(itertools.chain.from_iterable(_product(axes, baseline.engine) for axes in blocks)):
        reason = first_objection(candidate, facts, rules)
        if reason is not None:
            rejected.append(RejectedCandidate(candidate=candidate, reason=reason))
            continue
        asked_for += 1
        if candidate != baseline:
            kept.append(candidate)
    return SearchSpace(baseline=baseline, candidates=tuple(kept), rejected=tuple(rejected), asked_for=asked_for)


def _check_size(blocks: Sequence[Axes]) -> None:
    points = sum(math.prod(len(values) for values in vars(axes).values()) for axes in blocks)
    if points > MOST_CANDIDATES:
        raise InvalidValueError(
            f"The space has {points:,} configurations, at most {MOST_CANDIDATES:,} can be listed.",
            hint="Give its axes fewer values.",
        )


def _product(axes: Axes, engine: str) -> list[Candidate]:
    return [
        Candidate(
            engine=engine,
            cache=cache.strategy,
            cache_params=cache.params,
            attention=attention.backend,
            hub_kernel=attention.hub_kernel,
            dtype=dtype,
            compile=compile_mode,
            batch_size=batch_size,
            prefill_chunk=prefill_chunk,
            weights_limit_mib=weights_limit_mib,
        )
        for batch_size, dtype, compile_mode, weights_limit_mib, prefill_chunk, cache, attention in itertools.product(
            axes.batch_sizes,
            axes.dtypes,
            axes.compiles,
            axes.weights_limits_mib,
            axes.prefill_chunks,
            axes.caches,
            axes.attentions,
        )
    ]
