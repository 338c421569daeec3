"""How far a candidate strays from the reference: log-probabilities of a forced text to KL, NLL difference, top-1.

Numbers in, numbers out: what is compared comes from an engine, the reference's file from `trial.reference`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvray.engines.base import DECODED_TOKENS, ForcedText, ForcedToken, TopLogs
from kvray.errors import KvrayError
from kvray.judgement import DECODE_LENIENCE
from kvray.trial.divergence import Bounds, Floats, kl_bounds, kl_of_rows, known_rows, nll_bounds
from kvray.workload import Cell

FORCED_TOKENS = 256
"""Tokens of a text that are compared, where the cell is twice as long. The standard error that is recorded beside a
mean over them says how noisy it is."""
TOP_TOKENS = 512
"""Most probable tokens of the reference that are kept one by one. The others count as one."""


class QualityError(KvrayError):
    """A candidate strays further from the reference than its profile allows."""


class IncomparableError(KvrayError):
    """Candidate and reference were not asked about the same text."""


@dataclass(frozen=True, kw_only=True)
class QualityLoss:
    """A candidate against the reference, over the same forced tokens.

    Attributes:
        kl_mean: mean over tokens of KL(reference ‖ candidate), nats. Of distributions over the reference's `TOP_TOKENS`
            and one rest, so a lower bound of the whole vocabulary's. Where the candidate tells its most probable tokens
            only, the lower bound of that.
        kl_decode: the same over the first `DECODED_TOKENS` only: noisier, but a path that is wrong in decoding alone
            would drown among the others.
        nll_delta: mean of the candidate's minus the reference's negative log-likelihood of the text, nats per token.
            Below 0 the candidate predicts the text better, by luck.
        nll_delta_se: standard error of `nll_delta`, from the token-by-token differences as if they were independent.
        top1_agreement: share of tokens at which both hold the same one for the most probable.
        kl_upper, kl_decode_upper, nll_delta_upper: upper bounds of `kl_mean`, `kl_decode` and `nll_delta`, which are
            lower bounds then; `None` where these are exact.
    """

    kl_mean: float
    kl_decode: float
    nll_delta: float
    nll_delta_se: float
    top1_agreement: float
    kl_upper: float | None = None
    kl_decode_upper: float | None = None
    nll_delta_upper: float | None = None


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What is kept of the reference: one row per forced token.

    Attributes:
        text: the ids of the whole text that was fed, and that every candidate is fed.
        places: of the forced tokens in the text's forced part, from 0; they follow each other, (n,).
        tokens: the forced ids, (n,).
        top_ids, top_logs: the most probable tokens, best first, and their log-probabilities, (n, k).
        nll: negative log-likelihood of each forced token, (n,).
        nll_upper: the same, or its upper bound where the reference's engine told the most probable tokens only and
            `nll` is a lower bound.
    """

    text: NDArray[np.int64]
    places: NDArray[np.int64]
    tokens: NDArray[np.int64]
    top_ids: NDArray[np.int64]
    top_logs: NDArray[np.float32]
    nll: NDArray[np.float32]
    nll_upper: NDArray[np.float32]

    @property
    def forced_text(self) -> ForcedText:
        """What candidates are fed."""
        # The last of the text's tokens is the last that is told.
        return ForcedText(ids=tuple(self.text.tolist()), forced=int(self.places[-1]) + 1)


def forced_tokens(cell: Cell) -> int:
    """Tokens to force in a text as long as `cell`: at most half of it, so that there is something to remember."""
    return min(FORCED_TOKENS, (cell.context_tokens + cell.output_tokens) // 2)


def summarize(stream: Iterable[ForcedToken], text: ForcedText | None = None) -> Reference:
    """What is kept of `stream`, from its first row.

    Args:
        text: what was fed; by default the tokens that are told.

    Raises:
        IncomparableError: the stream is empty or holds values that are no log-probabilities.
    """
    places, tokens, ids, logs, nll = [], [], [], [], []
    for place, token, told in stream:
        top, top_logs, bounds = _kept(told, token)
        places.append(place)
        tokens.append(token)
        ids.append(top)
        logs.append(top_logs)
        nll.append((bounds.low, bounds.high))
    if not tokens or not np.isfinite(nll).all():
        raise IncomparableError("the reference's log-probabilities are not finite")
    return Reference(
        text=np.array(tokens if text is None else text.ids, dtype=np.int64),
        places=np.array(places, dtype=np.int64),
        tokens=np.array(tokens, dtype=np.int64),
        top_ids=np.array(ids, dtype=np.int64),
        top_logs=np.array(logs, dtype=np.float32),
        nll=np.array([low for low, _ in nll], dtype=np.float32),
        nll_upper=np.array([high for _, high in nll], dtype=np.float32),
    )


def compare(reference: Reference, stream: Iterable[ForcedToken]) -> QualityLoss:
    """The loss of the candidate that says `stream`, over the tokens that it tells, which may begin later than the
    reference's. Where several rows are told of a token, their mean counts.

    Raises:
        IncomparableError: the texts differ.
        QualityError: the candidate's log-probabilities are not finite.
    """
    compared, places = [], []
    for place, token, told in stream:
        known = place - int(reference.places[0])
        if not 0 <= known < len(reference.tokens) or token != reference.tokens[known]:
            raise IncomparableError("the reference was made on another text")
        places.append(known)
        compared.append(
            _compare_top(reference, known, told) if isinstance(told, TopLogs) else _compare_all(reference, known, told)
        )
    if not places or places != list(range(places[0], len(reference.tokens))):
        raise IncomparableError(f"{len(places)} tokens were forced, which are not the last of the reference's")
    return _loss(np.array(compared, dtype=np.float64), reference, places[0])


def _loss(compared: Floats, reference: Reference, begin: int) -> QualityLoss:
    """The loss from one row per token: KL and its upper bound, NLL and its upper bound, share of the same first choice.

    Raises:
        QualityError: a value is not finite.
    """
    if bad := int(np.sum(~np.isfinite(compared).all(axis=1))):
        raise QualityError(f"log-probabilities are not finite at {bad} of {len(compared)} tokens")
    kl, kl_upper, nll, nll_upper, agreement = compared.T
    lower = nll - reference.nll_upper[begin:].astype(np.float64)
    upper = nll_upper - reference.nll[begin:].astype(np.float64)
    return QualityLoss(
        kl_mean=float(np.mean(kl)),
        kl_decode=float(np.mean(kl[:DECODED_TOKENS])),
        nll_delta=float(np.mean(lower)),
        nll_delta_se=_standard_error(lower),
        top1_agreement=float(np.mean(agreement)),
        kl_upper=_upper(kl, kl_upper),
        kl_decode_upper=_upper(kl[:DECODED_TOKENS], kl_upper[:DECODED_TOKENS]),
        nll_delta_upper=_upper(lower, upper),
    )


def _upper(low: Floats, high: Floats) -> float | None:
    return None if np.array_equal(low, high) else float(np.mean(high))


def _kept(told: NDArray[np.float32] | TopLogs, token: int) -> tuple[NDArray[np.int64], NDArray[np.float32], Bounds]:
    """Most probable tokens of the first row, their log-probabilities, and the negative log-likelihood of `token`."""
    if isinstance(told, np.ndarray):
        top, nll = _top_ids(told[0]), -float(told[0, token])
        return top, told[0, top], Bounds(nll, nll)
    first = known_rows(told, token)[0]
    return told.ids[0, :TOP_TOKENS], told.logs[0, :TOP_TOKENS], nll_bounds(first, token)


def _compare_all(reference: Reference, known: int, rows: NDArray[np.float32]) -> tuple[float, ...]:
    ids, token = reference.top_ids[known], reference.tokens[known]
    kl = float(np.mean(kl_of_rows(reference.top_logs[known], rows[:, ids])))
    nll = float(np.mean(-rows[:, token].astype(np.float64)))
    return kl, kl, nll, nll, float(np.mean(rows.argmax(axis=1) == ids[0]))


def _compare_top(reference: Reference, known: int, told: TopLogs) -> tuple[float, ...]:
    ids, logs, token = reference.top_ids[known], reference.top_logs[known], int(reference.tokens[known])
    rows = known_rows(told, token)
    kl = [kl_bounds(ids, logs, row) for row in rows]
    nll = [nll_bounds(row, token) for row in rows]
    agreement = float(np.mean(told.ids[:, 0] == ids[0]))
    return _mean_low(kl), _mean_high(kl), _mean_low(nll), _mean_high(nll), agreement


def _mean_low(bounds: list[Bounds]) -> float:
    return float(np.mean([one.low for one in bounds]))


def _mean_high(bounds: list[Bounds]) -> float:
    return float(np.mean([one.high for one in bounds]))


def check_loss(loss: QualityLoss, limit: float | None) -> None:
    """Refuse a loss beyond `limit` (nats per token), or ten times that in decoding alone; `None` allows any. A loss
    that is known within bounds is refused where even the lower bound is beyond.

    Raises:
        QualityError
    """
    at_least = "at least " if loss.kl_upper is not None else ""
    if limit is not None and loss.kl_mean > limit:
        raise QualityError(
            f"KL {at_least}{loss.kl_mean:.2g} nats per token is over the limit of {limit:g} "
            f"(top-1 agreement {loss.top1_agreement * 100:.1f} %)"
        )
    if limit is not None and loss.kl_decode > DECODE_LENIENCE * limit:
        raise QualityError(
            f"KL {at_least}{loss.kl_decode:.2g} nats per token in decoding one by one is over {DECODE_LENIENCE} times "
            f"the limit of {limit:g}, and {loss.kl_mean:.2g} over all tokens"
        )


def _top_ids(logs: NDArray[np.float32]) -> NDArray[np.int64]:
    kept = min(TOP_TOKENS, len(logs))
    best = np.argpartition(logs, -kept)[-kept:]
    # Equal ones in the order of `argmax`: the lowest id first.
    order: NDArray[np.int64] = best[np.lexsort((best, -logs[best]))]
    return order


def _standard_error(values: Floats) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
