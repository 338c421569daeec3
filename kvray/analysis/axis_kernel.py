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
class AxisKernel:
    """The likenesses of n candidates, each to be multiplied by the variance of its term.

    Attributes:
        fixed: terms that no length changes, n × n each.
        names: the axes of names, as likenesses.
        distances: of the axes of numbers.
    """

    fixed: Array
    names: Array
    distances: Array

    @property
    def terms(self) -> int:
        """Number of likenesses: `fixed`, then those of numbers, then their pairs."""
        return len(self.fixed) + len(self.distances) + self.has_pairs

    @property
    def has_pairs(self) -> bool:
        """Whether an axis of numbers can interact with another axis."""
        return self._pair_count > 0

    def among(self, at: npt.NDArray[np.int64]) -> AxisKernel:
        """The same for some of the candidates, of which one may be named several times."""
        rows = np.ix_(at, at)
        return replace(self, **{name: getattr(self, name)[:, *rows] for name in ("fixed", "names", "distances")})

    def likenesses(self, lengths: Array) -> Array:
        """Terms × n × n."""
        if not len(self.distances):
            return self.fixed
        numbers, _ = correlations(self.distances, lengths)
        return np.concatenate([self.fixed, numbers, *([[self._pairs(numbers)]] if self.has_pairs else [])])

    def length_slopes(self, lengths: Array, variances: Array, excess: Array) -> Array:
        """Per length, the sum over all entries of `excess` times the covariance's derivative by its logarithm."""
        count = len(self.distances)
        if not count:
            return np.zeros(0)
        numbers, derivatives = correlations(self.distances, lengths)
        own = variances[len(self.fixed) : len(self.fixed) + count, None, None]
        pairs = variances[-1] / self._pair_count if self.has_pairs else 0.0
        changes = derivatives * (own + pairs * (self.names.sum(axis=0) + numbers.sum(axis=0) - numbers))
        return np.asarray(np.tensordot(changes, excess, axes=([1, 2], [0, 1])))

    def _pairs(self, numbers: Array) -> Array:
        """Mean over all pairs that have a number of the product of both likenesses."""
        total = numbers.sum(axis=0)
        among = (total**2 - (numbers**2).sum(axis=0)) / 2
        return np.asarray((total * self.names.sum(axis=0) + among) / self._pair_count)

    @property
    def _pair_count(self) -> int:
        count = len(self.distances)
        return count * len(self.names) + math.comb(count, 2)


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
