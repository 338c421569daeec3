"""How far one distribution over tokens is from another, where only part of either is known.

The reference is known by its most probable tokens and what all others have together. A candidate is known wholly, which
gives exact values, or by its own most probable tokens, which gives bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kvray.engines.base import TopLogs

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

REST_FLOOR = 1e-6
"""What is left beside the known tokens, where it is less: as much as the rounding of float32 values adds up to."""
LEAST_LOG = float(np.log(np.finfo(np.float32).tiny))
"""Log-probability of a token of which nothing is told but that it is improbable: that of the least normal float32."""


@dataclass(frozen=True)
class Bounds:
    """A value that is known to lie between `low` and `high`, inclusive; exact where they are equal."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Known:
    """The tokens of one distribution that are told, and what is known of the others.

    Attributes:
        ids, logs: of the told tokens, without repetition.
        cap: the highest probability that any other token can have.
    """

    ids: Ids
    logs: Floats
    cap: float

    @property
    def unseen(self) -> float:
        """What all other tokens have together."""
        return max(1.0 - float(np.exp(self.logs).sum()), REST_FLOOR)


def known_rows(told: TopLogs, token: int) -> list[Known]:
    """What `told` says of each row, before `token` was fed."""
    rows = []
    for index, (ids, logs) in enumerate(zip(told.ids, told.logs.astype(np.float64), strict=True)):
        row = Known(ids=ids, logs=logs, cap=max(float(np.exp(logs[-1])), float(np.exp(LEAST_LOG))))
        if told.token_logs is not None and token not in ids:
            row = replace(row, ids=np.append(ids, token), logs=np.append(logs, float(told.token_logs[index])))
        rows.append(row)
    return rows


def kl_of_rows(reference: NDArray[np.float32], rows: NDArray[np.float32]) -> Floats:
    """KL of each of `rows` (r, k) from `reference` (k,), log-probabilities of the same tokens; what is missing to 1 is
    one more token."""
    logs_p, logs_q = reference.astype(np.float64), rows.astype(np.float64)
    p = np.exp(logs_p)
    possible = p > 0
    kept = (p[possible] * (logs_p[possible] - logs_q[:, possible])).sum(axis=1)
    rest_p = max(1.0 - p.sum(), REST_FLOOR)
    rest_q = np.maximum(1.0 - np.exp(logs_q).sum(axis=1), REST_FLOOR)
    # Rounding can bring it below zero, which no divergence is.
    divergence: Floats = np.maximum(kept + rest_p * np.log(rest_p / rest_q), 0.0)
    return divergence


def kl_bounds(reference_ids: Ids, reference_logs: NDArray[np.float32], known: Known) -> Bounds:
    """Bounds of what `kl_of_rows` would give if the candidate told the reference's tokens.

    Args:
        reference_ids, reference_logs: the reference's most probable tokens, best first.
    """
    logs_p = reference_logs.astype(np.float64)
    p = np.exp(logs_p)
    places = {int(token): place for place, token in enumerate(known.ids)}
    found = np.array([places.get(int(token), -1) for token in reference_ids])
    is_told, is_hidden = (found >= 0) & (p > 0), (found < 0) & (p > 0)
    told = float((p[is_told] * (logs_p[is_told] - known.logs[found[is_told]])).sum())
    hidden, rest_p = p[is_hidden], max(1.0 - float(p.sum()), REST_FLOOR)
    # What the candidate gives to told tokens that the reference counts among the rest.
    beside = float(np.exp(np.delete(known.logs, found[found >= 0])).sum())
    if not len(hidden):
        exact = _rest_term(rest_p, 1.0 - float(np.exp(known.logs[found[found >= 0]]).sum()))
        return Bounds(max(told + exact, 0.0), max(told + exact, 0.0))
    scale = _fill(hidden, rest_p, beside=beside, known=known)
    nearest = np.minimum(known.cap, scale * hidden)
    low = told + float((hidden * np.log(hidden / nearest)).sum()) + _rest_term(rest_p, max(beside, scale * rest_p))
    # The hidden tokens cannot take more than `cap` each of what is unseen: at least this is left to the rest.
    least_rest = beside + max(known.unseen - len(hidden) * known.cap, 0.0)
    high = told + float((hidden * (np.log(hidden) - LEAST_LOG)).sum()) + _rest_term(rest_p, least_rest)
    return Bounds(max(low, 0.0), max(high, 0.0))


def nll_bounds(known: Known, token: int) -> Bounds:
    """Bounds of the negative log-likelihood of `token`."""
    told = known.logs[known.ids == token]
    if len(told):
        return Bounds(-float(told[0]), -float(told[0]))
    return Bounds(-float(np.log(min(known.cap, known.unseen))), -LEAST_LOG)


def _rest_term(rest_p: float, rest_q: float) -> float:
    return rest_p * float(np.log(rest_p / max(rest_q, REST_FLOOR)))


def _fill(hidden: Floats, rest_p: float, *, beside: float, known: Known) -> float:
    """The scale s at which `min(cap, s·hidden)` and the rest's `max(beside, s·rest_p)` take up just what is unseen: the
    distribution nearest to the reference that `known` allows (water-filling).

    What is taken up is linear in s between the points at which a hidden token reaches the cap or the rest begins to
    rise, so it is interpolated.
    """
    full = known.cap / hidden  # rises, because the reference's tokens fall
    points = np.sort(np.concatenate(([0.0], full, [beside / rest_p])))
    reached = np.searchsorted(full, points, side="right")
    left = np.append(np.cumsum(hidden[::-1])[::-1], 0.0)[reached]
    taken = reached * known.cap + points * left + np.maximum(points * rest_p - beside, 0.0)
    unseen = known.unseen + REST_FLOOR  # the least that a rest counts for comes on top
    if unseen > taken[-1]:
        return float(points[-1] + (unseen - taken[-1]) / rest_p)
    return float(np.interp(unseen, taken, points))
