"""How alike two candidates are expected to be: the covariance of the search's Gaussian process.

For candidates x and y, with a variance s² for each term:

    k(x, y) = 25 + Σ_a s_a² [x_a = y_a] + s_pairs² · mean over pairs a, b of [x_a = y_a] [x_b = y_b]
              + Σ_m s_m² C(|x_m − y_m|; l_m) + s_smooth² · mean over pairs m, i of C(|x_m − y_m|; l_m) A_i(x_i, y_i)
              + s_own² [x = y] + s_slope² f(x) f(y)

In words: a common level; an effect of every value of every axis a, taken as a name; an effect of every pair of such
values; a smooth effect of every axis m of numbers, with Matérn's correlation C and a length l_m of its own; smooth
effects of its pairs with every other axis i, whose likeness A_i is C for numbers and [x_i = y_i] for names; a residual
of every candidate; and the factor on the forecast f, around 1. So a number may have an effect of its own besides the
smooth one, and an axis whose order means nothing is described as names are.

A sum of kernels is a sum of independent effects, and a product is an interaction (Duvenaud 2014, "Automatic Model
Construction with Gaussian Processes", chapter 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kvray.analysis.axis_values import Array

CONSTANT_VARIANCE = 25.0
"""Variance of a logarithm: the overall level is whatever the measurements say."""


@dataclass(frozen=True, kw_only=True)
class Likenesses:
    """The covariance's terms at given lengths, each to be multiplied by its variance.

    Attributes:
        terms: those that no length changes, then the smooth effects, then their pairs.
        own_slopes, pair_slopes: per length, derivatives by its logarithm: of its smooth effect and of the pairs.
    """

    terms: Array
    own_slopes: Array
    pair_slopes: Array

    def length_slopes(self, variances: Array, excess: Array) -> Array:
        """Per length, the sum over all entries of `excess` times the covariance's derivative by its logarithm."""
        count = len(self.own_slopes)
        first = len(self.terms) - count - (len(self.pair_slopes) > 0)
        found = variances[first : first + count] * np.tensordot(self.own_slopes, excess, axes=([1, 2], [0, 1]))
        if len(self.pair_slopes):
            found += variances[-1] * np.tensordot(self.pair_slopes, excess, axes=([1, 2], [0, 1]))
        return np.asarray(found)


@dataclass(frozen=True, kw_only=True)
class AxisKernel:
    """What the covariance of n candidates is made of.

    Attributes:
        fixed: terms that no length changes, n × n each.
        named: n × n, on how many of the `names` axes of names two candidates are equal.
        distances: on each axis of numbers.
    """

    fixed: Array
    named: Array
    names: int
    distances: Array

    @property
    def terms(self) -> int:
        """Number of terms, each of which has a variance."""
        return len(self.fixed) + len(self.distances) + self.has_pairs

    @property
    def has_pairs(self) -> bool:
        """Whether an axis of numbers can interact with another axis."""
        return self._pair_count > 0

    def among(self, at: npt.NDArray[np.int64]) -> AxisKernel:
        """The same for some of the candidates, of which one may be named several times."""
        rows = at[:, None]
        return replace(
            self, fixed=self.fixed[:, rows, at], named=self.named[rows, at], distances=self.distances[:, rows, at]
        )

    def likenesses(self, lengths: Array) -> Likenesses:
        """All terms and their slopes."""
        if not len(self.distances):
            return Likenesses(terms=self.fixed, own_slopes=self.distances, pair_slopes=self.distances)
        numbers, slopes = correlations(self.distances, lengths)
        if not self.has_pairs:
            terms = np.concatenate([self.fixed, numbers])
            return Likenesses(terms=terms, own_slopes=slopes, pair_slopes=slopes[:0])
        total = numbers.sum(axis=0)
        pairs = (total * self.named + (total**2 - (numbers**2).sum(axis=0)) / 2) / self._pair_count
        return Likenesses(
            terms=np.concatenate([self.fixed, numbers, pairs[None]]),
            own_slopes=slopes,
            pair_slopes=slopes * (self.named + total - numbers) / self._pair_count,
        )

    @property
    def _pair_count(self) -> int:
        count = len(self.distances)
        return count * self.names + math.comb(count, 2)


def correlations(distances: Array, lengths: Array) -> tuple[Array, Array]:
    """Matérn's correlation of smoothness 5/2 per axis, and its derivative by the logarithm of the length.

    C(d; l) = (1 + r + r²/3) · exp(−r) with r = √5 · d / l (Rasmussen and Williams 2006, "Gaussian Processes for Machine
    Learning", equation 4.17). A short length makes every number a name, a long one makes the effect a straight line.
    """
    ratio = math.sqrt(5) * distances / lengths[:, None, None]
    decay = np.exp(-ratio)
    return (1 + ratio + ratio**2 / 3) * decay, ratio**2 * (1 + ratio) / 3 * decay


def stacked(matrices: Sequence[Array], size: int) -> Array:
    """Matrices × `size` × `size`, also where there are none."""
    return np.array(matrices).reshape(len(matrices), size, size)
