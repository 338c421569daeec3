"""From axes to candidates: each point of a product of axes is either kept or rejected with its reason."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvray.candidate import AttentionChoice, CacheChoice, Candidate, CompileMode, DType
from kvray.errors import InvalidValueError
from kvray.space.axis import AxisRequest, with_settings
from kvray.space.constraints import RULES, Constraint, SpaceFacts, first_objection

MOST_CANDIDATES = 20_000
"""Most points of a space, rejected ones included. The full space of a GPU has three thousand per batch size."""


@dataclass(frozen=True, kw_only=True)
class SpaceBlock:
    """A block of a space: the values that each axis may take, in every combination.

    Attributes:
        settings: values of the engine's own axes by name; one that is not there is not set.
    """

    caches: tuple[CacheChoice, ...]
    attentions: tuple[AttentionChoice, ...]
    dtypes: tuple[DType, ...]
    compiles: tuple[CompileMode, ...] = (CompileMode.OFF,)
    batch_sizes: tuple[int, ...] = (1,)
    parallelisms: tuple[int, ...] = (1,)
    settings: Mapping[str, tuple[AxisRequest, ...]] = field(default_factory=dict)

    def values_of(self, axis: str) -> tuple[Any, ...]:
        """The values of an axis."""
        return getattr(self, _FIELDS[axis]) if axis in _FIELDS else self.settings.get(axis, (None,))

    def having(self, values: Mapping[str, tuple[Any, ...]]) -> SpaceBlock:
        """A copy that has these values of these axes."""
        shared = {_FIELDS[axis]: some for axis, some in values.items() if axis in _FIELDS}
        own = {axis: some for axis, some in values.items() if axis not in _FIELDS}
        return replace(self, **shared, settings={**self.settings, **own})

    @property
    def points(self) -> int:
        """How many combinations there are."""
        shared = (getattr(self, name) for name in _FIELDS.values())
        return math.prod(len(values) for values in (*shared, *self.settings.values()))


_FIELDS = {
    "cache": "caches",
    "attention": "attentions",
    "dtype": "dtypes",
    "compile": "compiles",
    "batch_size": "batch_sizes",
    "parallelism": "parallelisms",
}
"""Where a block has the values of the axes that all engines share."""


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
    blocks: Sequence[SpaceBlock],
    *,
    baseline: Candidate,
    facts: SpaceFacts,
    engine_rules: Sequence[Constraint] = (),
    canonical: Callable[[Candidate], Candidate] = lambda candidate: candidate,
    listed: Sequence[Candidate] = (),
) -> SearchSpace:
    """Enumerate `blocks` for the baseline's engine, what several have once; the baseline is part of the space whatever
    they say.

    Args:
        listed: candidates that are asked for beside those of the blocks.
        canonical: the form of a candidate that all ways to ask for it come to.

    Raises:
        InvalidValueError: they have more than `MOST_CANDIDATES` points.
    """
    _check_size(blocks)
    rules = (*RULES, *engine_rules)
    kept: list[Candidate] = [baseline]
    rejected: list[RejectedCandidate] = []
    asked_for = 0
    points = itertools.chain.from_iterable(_product(block, baseline.engine) for block in blocks)
    for candidate in dict.fromkeys(canonical(point) for point in (*points, *listed)):
        reason = first_objection(candidate, facts, rules)
        if reason is not None:
            rejected.append(RejectedCandidate(candidate=candidate, reason=reason))
            continue
        asked_for += 1
        if candidate != baseline:
            kept.append(candidate)
    return SearchSpace(baseline=baseline, candidates=tuple(kept), rejected=tuple(rejected), asked_for=asked_for)


def _check_size(blocks: Sequence[SpaceBlock]) -> None:
    points = sum(block.points for block in blocks)
    if points > MOST_CANDIDATES:
        raise InvalidValueError(
            f"The space has {points:,} configurations, at most {MOST_CANDIDATES:,} can be listed.",
            hint="Give its axes fewer values.",
        )


def _product(block: SpaceBlock, engine: str) -> list[Candidate]:
    return [
        with_settings(
            Candidate(
                engine=engine,
                cache=cache.strategy,
                cache_params=cache.params,
                attention=attention.backend,
                hub_kernel=attention.hub_kernel,
                dtype=dtype,
                compile=compile_mode,
                batch_size=batch_size,
                parallelism=parallelism,
            ),
            dict(zip(block.settings, settings, strict=True)),
        )
        for batch_size, parallelism, dtype, compile_mode, settings, cache, attention in itertools.product(
            block.batch_sizes,
            block.parallelisms,
            block.dtypes,
            block.compiles,
            list(itertools.product(*block.settings.values())),
            block.caches,
            block.attentions,
        )
    ]
