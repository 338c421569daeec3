"""How far a candidate strays from the reference: log-probabilities of a forced text to KL, NLL difference, top-1.

Numbers in, numbers out: what is compared comes from an engine, the reference's file from `trial.reference`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvray.engines.base import DECODED_TOKENS, ForcedToken
from kvray.errors import KvrayError
from kvray.judgement import DECODE_LENIENCE
from kvray.workload import Cell

FORCED_TOKENS = 256
"""Tokens of a text that are compared, where the cell is twice as long. Of the noise in a mean over them, the standard
error that is recorded beside it tells."""
TOP_TOKENS = 512
"""Most probable tokens of the reference that are kept one by one. The others count as one."""
_REST_FLOOR = 1e-6
"""What is left beside the top tokens, where it is less: as much as the rounding of float32 values adds up to."""

Floats = NDArray[np.float64]


class QualityError(KvrayError):
    """A candidate strays further from the reference than its profile allows."""


class IncomparableError(KvrayError):
    """Candidate and reference were not asked about the same text."""


@dataclass(frozen=True, kw_only=True)
class QualityLoss:
    """A candidate against the reference, over the same forced tokens.

    Attributes:
        kl_mean: mean over tokens of KL(reference ‖ candidate), nats. Of distributions over the reference's `TOP_TOKENS`
            and one rest, so a lower bound of the whole vocabulary's.
        kl_decode: the same over the first `DECODED_TOKENS` only: noisier, but a path that is wrong in decoding alone
            would drown among the others.
        nll_delta: mean of the candidate's minus the reference's negative log-likelihood of the text, nats per token.
            Below 0 the candidate predicts the text better, by luck.
        nll_delta_se: standard error of `nll_delta`, from the token-by-token differences as if they were independent.
        top1_agreement: share of tokens at which both hold the same one for the most probable.
    """

    kl_mean: float
    kl_decode: float
    nll_delta: float
    nll_delta_se: float
    top1_agreement: float


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What is kept of the reference: one row per forced token.

    Attributes:
        places: of the forced tokens in the text's forced part, from 0; they follow each other, (n,).
        tokens: the forced ids, (n,).
        top_ids, top_logs: the most probable tokens, best first, and their log-probabilities, (n, k).
        nll: negative log-likelihood of each forced token, (n,).
    """

    places: NDArray[np.int64]
    tokens: NDArray[np.int64]
    top_ids: NDArray[np.int64]
    top_logs: NDArray[np.float32]
    nll: NDArray[np.float32]


def forced_tokens(cell: Cell) -> int:
    """Tokens to force in a text as long as `cell`: at most half of it, so that there is something to remember."""
    return min(FORCED_TOKENS, (cell.context_tokens + cell.output_tokens) // 2)


def summarize(stream: Iterable[ForcedToken]) -> Reference:
    """What is kept of `stream`, from its first row.

    Raises:
        IncomparableError: the stream is empty or holds values that are no log-probabilities.
    """
    places, tokens, ids, logs, nll = [], [], [], [], []
    for place, token, rows in stream:
        top = _top_ids(rows[0])
        places.append(place)
        tokens.append(token)
        ids.append(top)
        logs.append(rows[0][top])
        nll.append(-rows[0][token])
    if not tokens or not np.isfinite(nll).all():
        raise IncomparableError("the reference's log-probabilities are not finite")
    return Reference(
        places=np.array(places, dtype=np.int64),
        tokens=np.array(tokens, dtype=np.int64),
        top_ids=np.array(ids, dtype=np.int64),
        top_logs=np.array(logs, dtype=np.float32),
        nll=np.array(nll, dtype=np.float32),
    )


def compare(reference: Reference, stream: Iterable[ForcedToken]) -> QualityLoss:
    """The loss of the candidate that says `stream`, over the tokens that it tells, which may begin later than the
    reference's. Of several rows each token's mean counts.

    Raises:
        IncomparableError: the texts differ.
        QualityError: the candidate's log-probabilities are not finite.
    """
    kl, nll, agreement, told = [], [], [], []
    for place, token, rows in stream:
        known = place - int(reference.places[0])
        if not 0 <= known < len(reference.tokens) or token != reference.tokens[known]:
            raise IncomparableError("the reference was made on another text")
        told.append(known)
        kl.append(np.mean(_divergences(reference.top_logs[known], rows[:, reference.top_ids[known]])))
        nll.append(np.mean(-rows[:, token].astype(np.float64)))
        agreement.append(np.mean(rows.argmax(axis=1) == reference.top_ids[known, 0]))
    if not told or told != list(range(told[0], len(reference.tokens))):
        raise IncomparableError(f"{len(told)} tokens were forced, which are not the last of the reference's")
    if bad := int(np.sum(~np.isfinite(kl) | ~np.isfinite(nll))):
        raise QualityError(f"log-probabilities are not finite at {bad} of {len(kl)} tokens")
    difference: Floats = np.array(nll) - reference.nll[told[0] :].astype(np.float64)
    return QualityLoss(
        kl_mean=float(np.mean(kl)),
        kl_decode=float(np.mean(kl[:DECODED_TOKENS])),
        nll_delta=float(np.mean(difference)),
        nll_delta_se=_standard_error(difference),
        top1_agreement=float(np.mean(agreement)),
    )


def check_loss(loss: QualityLoss, limit: float | None) -> None:
    """Refuse a loss beyond `limit` (nats per token), or ten times that in decoding alone; `None` allows any.

    Raises:
        QualityError
    """
    if limit is not None and loss.kl_mean > limit:
        raise QualityError(
            f"KL {loss.kl_mean:.2g} nats per token is over the limit of {limit:g} "
            f"(top-1 agreement {loss.top1_agreement * 100:.1f} %)"
        )
    if limit is not None and loss.kl_decode > DECODE_LENIENCE * limit:
        raise QualityError(
            f"KL {loss.kl_decode:.2g} nats per token in decoding one by one is over {DECODE_LENIENCE} times the limit "
            f"of {limit:g}, and {loss.kl_mean:.2g} over all tokens"
        )


def _top_ids(logs: NDArray[np.float32]) -> NDArray[np.int64]:
    kept = min(TOP_TOKENS, len(logs))
    best = np.argpartition(logs, -kept)[-kept:]
    # Equal ones in the order of `argmax`: the lowest id first.
    order: NDArray[np.int64] = best[np.lexsort((best, -logs[best]))]
    return order


def _divergences(reference: NDArray[np.float32], rows: NDArray[np.float32]) -> Floats:
    """KL of each of `rows` (r, k) from `reference` (k,), with what is missing to 1 as one more token."""
    logs_p, logs_q = reference.astype(np.float64), rows.astype(np.float64)
    p = np.exp(logs_p)
    possible = p > 0
    kept = (p[possible] * (logs_p[possible] - logs_q[:, possible])).sum(axis=1)
    rest_p = max(1.0 - p.sum(), _REST_FLOOR)
    rest_q = np.maximum(1.0 - np.exp(logs_q).sum(axis=1), _REST_FLOOR)
    # Rounding can bring it below zero, which no divergence is.
    divergence: Floats = np.maximum(kept + rest_p * np.log(rest_p / rest_q), 0.0)
    return divergence


def _standard_error(values: Floats) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
