from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvray.engines.base import DECODED_TOKENS, ForcedText, ForcedToken, TopLogs
from kvray.trial.divergence import Floats, kl_bounds, kl_of_rows, known_rows, nll_bounds
from kvray.trial.quality import (
    TOP_TOKENS,
    IncomparableError,
    QualityError,
    QualityLoss,
    check_loss,
    compare,
    forced_tokens,
    summarize,
)
from kvray.workload import Cell


def whole(told: NDArray[np.float32] | TopLogs) -> NDArray[np.float32]:
    assert isinstance(told, np.ndarray)
    return told


def stream(
    *distributions: Sequence[float], tokens: Sequence[int] | None = None, rows: int = 1
) -> Iterator[ForcedToken]:
    for place, one in enumerate(distributions):
        with np.errstate(divide="ignore"):
            logs = np.log(np.array(one, dtype=np.float64)).astype(np.float32)
        yield place, (tokens[place] if tokens else 0), np.stack([logs] * rows)


def random_stream(seed: int, *, vocabulary: int, tokens: int = 20, noise: float = 0.0) -> Iterator[ForcedToken]:
    text, disturbance = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    for place in range(tokens):
        logits = 3 * text.normal(size=vocabulary) + noise * disturbance.normal(size=vocabulary)
        logs = logits - np.log(np.exp(logits).sum())
        yield place, int(text.integers(vocabulary)), logs[None].astype(np.float32)


@given(seed=st.integers(0, 1000), vocabulary=st.integers(2, 3 * TOP_TOKENS))
def test_the_same_distribution_loses_nothing(seed: int, vocabulary: int) -> None:
    loss = compare(summarize(random_stream(seed, vocabulary=vocabulary)), random_stream(seed, vocabulary=vocabulary))
    assert loss == QualityLoss(kl_mean=0.0, kl_decode=0.0, nll_delta=0.0, nll_delta_se=0.0, top1_agreement=1.0)


def test_a_case_small_enough_to_compute_by_hand() -> None:
    reference = summarize(stream((0.5, 0.25, 0.25), (0.1, 0.8, 0.1), tokens=(0, 1)))
    loss = compare(reference, stream((0.25, 0.5, 0.25), (0.1, 0.8, 0.1), tokens=(0, 1)))
    kl = 0.5 * np.log(2) + 0.25 * np.log(0.5)
    assert loss.kl_mean == pytest.approx(kl / 2, rel=1e-5)
    assert loss.nll_delta == pytest.approx(np.log(2) / 2, rel=1e-5)
    assert loss.nll_delta_se == pytest.approx(np.log(2) / 2, rel=1e-5), "of the two differences ln 2 and 0"
    assert loss.top1_agreement == 0.5


def test_the_standard_error_is_that_of_the_paired_differences() -> None:
    reference = list(random_stream(1, vocabulary=50, tokens=40))
    candidate = list(random_stream(1, vocabulary=50, tokens=40, noise=0.3))
    differences = [
        float(whole(a)[0, token] - whole(b)[0, token])
        for (_, token, a), (_, _, b) in zip(reference, candidate, strict=True)
    ]
    loss = compare(summarize(reference), candidate)
    assert loss.nll_delta == pytest.approx(np.mean(differences), rel=1e-4)
    assert loss.nll_delta_se == pytest.approx(np.std(differences, ddof=1) / np.sqrt(40), rel=1e-4)


def test_what_is_beside_the_top_tokens_counts_as_one_and_bounds_the_loss_from_below() -> None:
    reference = list(random_stream(3, vocabulary=4 * TOP_TOKENS))
    candidate = list(random_stream(3, vocabulary=4 * TOP_TOKENS, noise=1.0))
    full = [
        float((np.exp(whole(p)[0]) * (whole(p)[0] - whole(q)[0])).sum())
        for (_, _, p), (_, _, q) in zip(reference, candidate, strict=True)
    ]
    loss = compare(summarize(reference), candidate)
    assert 0.7 * np.mean(full) < loss.kl_mean <= np.mean(full)


def test_the_rows_of_a_batch_are_averaged() -> None:
    reference = summarize(stream((0.5, 0.5)))
    logs = np.log(np.array([[0.5, 0.5], [0.25, 0.75]], dtype=np.float32))
    loss = compare(reference, [(0, 0, logs)])
    assert loss.kl_mean == pytest.approx(0.5 * (0.5 * np.log(2) + 0.5 * np.log(2 / 3)), rel=1e-4)
    assert loss.nll_delta == pytest.approx(np.log(2) / 2, rel=1e-5)
    assert loss.top1_agreement == 0.5


def test_tokens_that_the_reference_excludes_cost_nothing() -> None:
    loss = compare(summarize(stream((1.0, 0.0))), stream((1.0, 0.0)))
    assert loss.kl_mean == 0.0


@pytest.mark.parametrize("bad", [(np.nan, np.nan), (0.0, 1.0)])
def test_what_is_not_finite_is_a_loss_without_a_number(bad: tuple[float, float]) -> None:
    with pytest.raises(QualityError, match="not finite at 1 of 2 tokens"):
        compare(summarize(stream((0.5, 0.5), (0.5, 0.5))), stream((0.5, 0.5), bad))


def test_a_reference_that_is_not_finite_is_refused() -> None:
    with pytest.raises(IncomparableError, match="not finite"):
        summarize(stream((np.nan, 1.0)))


def test_another_text_is_refused() -> None:
    reference = summarize(stream((0.5, 0.5), (0.5, 0.5), tokens=(0, 1)))
    with pytest.raises(IncomparableError, match="another text"):
        compare(reference, stream((0.5, 0.5), (0.5, 0.5), tokens=(0, 0)))
    with pytest.raises(IncomparableError, match="1 tokens were forced, which are not the last of the reference's"):
        compare(reference, stream((0.5, 0.5), tokens=(0,)))
    with pytest.raises(IncomparableError, match="0 tokens were forced"):
        compare(reference, [])


def test_a_candidate_that_begins_later_is_compared_over_what_it_tells() -> None:
    reference = summarize(stream((0.9, 0.1), (0.5, 0.5), (0.5, 0.5), tokens=(0, 0, 1)))
    later = [*stream((0.1, 0.9), (0.5, 0.5), (0.25, 0.75), tokens=(0, 0, 1))][1:]
    loss = compare(reference, later)
    assert loss.kl_mean == pytest.approx((0.5 * np.log(2) + 0.5 * np.log(2 / 3)) / 2, rel=1e-5)
    assert loss.top1_agreement == 0.5


def test_a_reference_that_begins_later_than_the_candidate_is_another_text() -> None:
    told = list(stream((0.5, 0.5), (0.5, 0.5)))
    with pytest.raises(IncomparableError, match="another text"):
        compare(summarize(told[1:]), told)


@pytest.mark.parametrize(("cell", "tokens"), [(Cell(512, 16, 1), 256), (Cell(32, 8, 1), 20), (Cell(1, 2, 1), 1)])
def test_at_most_half_of_a_text_is_forced(cell: Cell, tokens: int) -> None:
    assert forced_tokens(cell) == tokens


def test_a_loss_beyond_the_limit_is_told_with_both_numbers() -> None:
    loss = QualityLoss(kl_mean=0.41, kl_decode=0.41, nll_delta=0.3, nll_delta_se=0.02, top1_agreement=0.7)
    check_loss(loss, None)
    check_loss(loss, 0.41)
    with pytest.raises(QualityError, match=r"KL 0\.41 nats per token is over the limit of 0\.05 \(.*70\.0 %\)"):
        check_loss(loss, 0.05)


def test_a_path_that_is_wrong_in_decoding_alone_does_not_drown_among_the_other_tokens() -> None:
    even, wrong = (0.5, 0.5), (0.001, 0.999)
    loss = compare(
        summarize(stream(*[even] * 256)), stream(*[wrong] * DECODED_TOKENS, *[even] * (256 - DECODED_TOKENS))
    )
    assert loss.kl_mean < 0.1 < 2 < loss.kl_decode
    with pytest.raises(QualityError, match=r"KL 2\.8 nats per token in decoding one by one is over 10 times"):
        check_loss(loss, 0.1)


def softmax(logits: list[float]) -> Floats:
    logs = np.array(logits, dtype=np.float64)
    values: Floats = logs - np.log(np.exp(logs).sum())
    return values


def told_of(logs: Floats, kept: int, *, token: int | None) -> TopLogs:
    ids = np.argsort(-logs, kind="stable")[:kept].astype(np.int64)
    fed = None if token is None else logs[None, token].astype(np.float32)
    return TopLogs(ids=ids[None], logs=logs[None, ids].astype(np.float32), token_logs=fed)


LOGITS = st.integers(2, 24).flatmap(
    lambda size: st.tuples(*[st.lists(st.floats(-12, 12, width=32), min_size=size, max_size=size)] * 2)
)


@given(logits=LOGITS, kept=st.integers(1, 24), kept_of_reference=st.integers(1, 24), tells_token=st.booleans())
def test_bounds_contain_what_all_probabilities_would_have_given(
    logits: tuple[list[float], list[float]], kept: int, kept_of_reference: int, tells_token: bool
) -> None:
    p, q = softmax(logits[0]), softmax(logits[1])
    known = np.argsort(-p, kind="stable")[:kept_of_reference]
    exact = kl_of_rows(p[known].astype(np.float32), q[None, known].astype(np.float32))[0]
    (row,) = known_rows(told_of(q, kept, token=0 if tells_token else None), 0)
    bounds = kl_bounds(known, p[known].astype(np.float32), row)
    assert bounds.low - 2e-6 <= exact <= bounds.high + 2e-6
    assert exact <= float((np.exp(p) * (p - q)).sum()) + 1e-4, "which is a lower bound of the whole vocabulary's"
    likelihood = nll_bounds(row, 0)
    assert likelihood.low - 1e-4 <= -q[0] <= likelihood.high + 1e-4


@given(logits=LOGITS)
def test_who_tells_all_tokens_as_the_most_probable_gives_the_exact_values(
    logits: tuple[list[float], list[float]],
) -> None:
    p, q = softmax(logits[0]).astype(np.float32), softmax(logits[1]).astype(np.float32)
    reference = summarize([(0, 1, p[None])])
    exact = compare(reference, [(0, 1, q[None])])
    told = compare(reference, [(0, 1, told_of(q.astype(np.float64), len(q), token=None))])
    assert told.kl_upper is told.nll_delta_upper is None
    assert told.kl_mean == pytest.approx(exact.kl_mean, abs=1e-5)
    assert told.nll_delta == pytest.approx(exact.nll_delta, abs=1e-5)
    assert told.top1_agreement == exact.top1_agreement


def test_bounds_small_enough_to_compute_by_hand() -> None:
    """The candidate tells 0.5 for the first of four tokens, the reference has 0.4, 0.3, 0.2 and 0.1."""
    reference = summarize(stream((0.4, 0.3, 0.2, 0.1), tokens=(0,)))
    loss = compare(reference, [(0, 0, told_of(np.log([0.5, 0.25, 0.15, 0.1]), 1, token=None))])
    # Nearest to the reference are 0.25, 0.167 and 0.083: as its own, in what is left.
    nearest = 0.4 * np.log(0.4 / 0.5) + 0.6 * np.log(0.6 / 0.5)
    assert loss.kl_mean == pytest.approx(nearest, rel=1e-4)
    assert loss.kl_upper is not None
    assert loss.kl_upper > 50, "what is not told may be as improbable as anything"
    assert loss.nll_delta == pytest.approx(np.log(0.4 / 0.5), rel=1e-4)
    assert loss.nll_delta_upper is None, "the fed token was told"
    assert loss.top1_agreement == 1.0


def test_a_token_that_is_not_told_is_at_most_as_probable_as_the_last_that_is() -> None:
    """A few tokens are enough to see that a cache is wrong."""
    reference = summarize(stream((0.97, 0.01, 0.01, 0.01), tokens=(0,)))
    loss = compare(reference, [(0, 0, told_of(np.log([0.01, 0.5, 0.48, 0.01]), 3, token=None))])
    assert loss.kl_mean == pytest.approx(
        0.97 * np.log(0.97 / 0.01) + 0.01 * np.log(0.01 * 0.01 / (0.5 * 0.48)), rel=0.1
    )
    with pytest.raises(QualityError, match=r"KL at least 4\.\d nats per token is over the limit"):
        check_loss(loss, 0.1)


def test_a_loss_that_may_be_over_the_limit_is_not_refused() -> None:
    loss = QualityLoss(
        kl_mean=0.02, kl_upper=0.6, kl_decode=0.02, nll_delta=0.01, nll_delta_se=0.01, top1_agreement=0.99
    )
    check_loss(loss, 0.1)


def test_a_reference_by_an_engine_that_tells_the_most_probable_tokens_only_serves_as_well() -> None:
    p, q = np.log([0.4, 0.3, 0.2, 0.1]), np.log([0.3, 0.4, 0.2, 0.1])
    text = ForcedText(ids=(2, 1, 3), forced=1)
    reference = summarize([(0, 3, told_of(p, 2, token=None))], text)
    assert reference.forced_text == text
    loss = compare(reference, stream(np.exp(q).tolist(), tokens=(3,)))
    coarse = 0.4 * np.log(0.4 / 0.3) + 0.3 * np.log(0.3 / 0.4)
    assert loss.kl_mean == pytest.approx(coarse, rel=1e-4)
    assert loss.kl_upper is None, "all that the reference knows is compared"
    assert loss.nll_delta_upper is not None, "of the fed token the reference knows no more than a bound"
    assert loss.nll_delta <= -q[3] + p[3] <= loss.nll_delta_upper
