"""Made-up landscapes with two axes of numbers: threads, and the size of a micro-batch (or the engine's own choice)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from landscapes import Array, Kind, Landscape, landscape_of

from kvray.candidate import AttentionBackend, CacheChoice, Candidate, DType

_CACHES = ("dynamic", "static", "quantized(backend=hqq,nbits=4)")
_THREADS = (1, 2, 3, 4, 6, 8, 12, 16)
_MICRO_BATCHES = (None, 32, 64, 128, 256, 512, 1024, 2048)
_AXES: tuple[Array, ...] = (
    np.full(len(_CACHES), np.nan),
    np.log2(_THREADS) / 4,
    np.array([np.nan, *np.linspace(0, 1, len(_MICRO_BATCHES) - 1)]),
)
"""Per axis, where each of its values lies; `nan` for a name."""
_PRODUCTS = 3
"""An interaction of two axes is a sum of so many products of an effect of each."""


_WITHOUT_ORDER = "numbers without order"
NUMBERS = (
    Kind(name="numbers"),
    Kind(name="numbers no forecast", forecast_correlation=0.0),
    Kind(name=_WITHOUT_ORDER),
)
"""Smooth in both numbers; the same without a forecast, which knows neither of them; and names in disguise."""


def make_number_landscape(kind: Kind, seed: int) -> Landscape:
    """One landscape of 192 candidates, of a kind of `NUMBERS`."""
    generator = np.random.default_rng([seed, 192])
    axes = _AXES if kind.name != _WITHOUT_ORDER else tuple(np.full(len(axis), np.nan) for axis in _AXES)
    effects = [_effects(kind, axes, generator) for _ in range(3)]
    candidates = [_candidate(*point) for point in itertools.product(_CACHES, _THREADS, _MICRO_BATCHES)]
    points = np.array(list(itertools.product(*(range(len(axis)) for axis in axes))))
    return landscape_of(kind, candidates, points, np.stack(effects, axis=1), generator)


def _candidate(cache: str, threads: int, micro_batch: int | None) -> Candidate:
    choice = CacheChoice.parse(cache)
    return Candidate(
        engine="made-up",
        cache=choice.strategy,
        cache_params=choice.params,
        attention=AttentionBackend.SDPA,
        dtype=DType.BFLOAT16,
        settings=(("threads", threads), *(() if micro_batch is None else (("ubatch", micro_batch),))),
    )


def _effects(kind: Kind, axes: Sequence[Array], generator: np.random.Generator) -> Array:
    """An effect of every candidate, with a spread of 1 for the main ones."""
    shape = tuple(len(axis) for axis in axes)
    total = kind.residual * generator.standard_normal(shape)
    for place, axis in enumerate(axes):
        strength = kind.main * generator.gamma(2.0, 0.5) / np.sqrt(len(axes))
        total += strength * _along(_effect(axis, generator), place, len(axes))
    pairs = list(itertools.combinations(range(len(axes)), 2))
    for first, second in pairs:
        strength = kind.pair * generator.gamma(2.0, 0.5) / np.sqrt(len(pairs) * _PRODUCTS)
        for _ in range(_PRODUCTS):
            one, other = (_along(_effect(axes[at], generator), at, len(axes)) for at in (first, second))
            total += strength * one * other
    return np.asarray(total.ravel())


def _effect(positions: Array, generator: np.random.Generator) -> Array:
    """The effect of each value of an axis. Names are independent. Numbers share a level and follow a curve: saturating,
    with a best place, and with a knee, as chunk sizes, windows and threads have."""
    found = generator.standard_normal(len(positions))
    numbers = ~np.isnan(positions)
    if numbers.any():
        t = positions[numbers]
        saturating = 1 - np.exp(-generator.uniform(1, 6) * t)
        humped = -((t - generator.uniform()) ** 2)
        knee = 1 / (1 + np.exp(-20 * (t - generator.uniform())))
        curves = np.stack([(curve - curve.mean()) / curve.std() for curve in (saturating, humped, knee)])
        found[numbers] = 0.5 * generator.standard_normal() + (generator.normal(0, [0.6, 0.6, 0.4]) @ curves)
    return np.asarray(found)


def _along(values: Array, place: int, axes: int) -> Array:
    return values.reshape([-1 if at == place else 1 for at in range(axes)])
