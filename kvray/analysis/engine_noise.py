"""How unlike the noise of engines is, and what the runs of one engine tell of another's.

On the same machine one engine may repeat itself within 1 %, another within 6 %. So each has a noise of its own. Where
little was seen of an engine, its noise is drawn towards that of the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

ENGINE_SD = 0.8
"""Standard deviation of the logarithm of an engine's noise around what the engines of a machine have in common: they
differ by a factor of 2 or 3. In `benchmarks/two_engines.py`, where it is six, a belief in likeness (0.3) leaves the
noisy engine's intervals too narrow, and 1.2 makes those of an engine measured once twice as wide as with one engine."""
_LEAST_VARIANCE = 1e-8
"""Variance of a run whose spread is 0.01 %: runs that agree more closely than that tell nothing more."""


def engine_codes(engines: Sequence[str]) -> npt.NDArray[np.int64]:
    """Numbers from 0, the same where the names are."""
    return np.unique(engines, return_inverse=True)[1].astype(np.int64)


def run_variances(squares: Array, freedom: Array) -> Array:
    """Variances of one run around its cell's mean, engines × metrics.

    The logarithm of a variance that rests on f degrees of freedom has a variance of about 2/f + 2/f² and is 1/f too low
    on average. Engines differ by `ENGINE_SD` in the logarithm of a standard deviation. So an engine's logarithm is
    drawn towards the engines' common one, as far as it is less certain than that.

    Args:
        squares: engines × metrics, sums of squares around the cells' means.
        freedom: of each engine; 0 where no cell has two runs. The engine then has the common variance, which is 0 if no
            engine knows any.
    """
    known = freedom > 0
    if not known.any():
        return np.zeros_like(squares)
    if len(squares) == 1:
        return np.asarray(squares / freedom[:, None])
    seen, between = freedom[known, None], (2 * ENGINE_SD) ** 2
    logs = np.log(np.maximum(squares[known] / seen, _LEAST_VARIANCE)) + 1 / seen
    weights = 1 / (between + 2 / seen + 2 / seen**2)
    common = (weights * logs).sum(axis=0) / weights.sum()
    found = np.tile(common, (len(squares), 1))
    found[known] += between * weights * (logs - common)
    return np.asarray(np.exp(found))
