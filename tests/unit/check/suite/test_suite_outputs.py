from __future__ import annotations

from typing import Any

import pytest
from suite_samples import BF16, CASE, OUTPUTS, RAN, recorded

from kvray.check.suite.cases import Case
from kvray.check.suite.outputs import Findings, OutputRules, Strictness, compare_outputs
from kvray.check.suite.record import Outputs, RecordedCase
from kvray.record import TrialStatus

HERE = OutputRules(same_surroundings=True)
ELSEWHERE = OutputRules(same_surroundings=False)


def found(now: RecordedCase, rules: OutputRules = HERE, case: Case = CASE, **before: Any) -> Findings:
    return compare_outputs(case, recorded(case, **before), now, rules)


def moved(by: float) -> Outputs:
    return OUTPUTS.model_copy(update={"logs": ((-1.0, -2.5 + by, -0.25),)})


def test_the_same_outputs_are_no_finding() -> None:
    assert found(recorded()) == Findings(strictness=Strictness.BITS)
    assert found(recorded(), ELSEWHERE).failures == ()


def test_the_last_bit_counts_on_the_same_machine_with_the_same_versions() -> None:
    assert found(recorded(outputs=moved(3e-7))).failures == (
        "log-probabilities moved by up to 3e-07 nats, with the same machine and versions",
    )
    for lenient in (
        found(recorded(outputs=moved(3e-7)), ELSEWHERE),
        found(recorded(outputs=moved(3e-7), versions={"torch": "2.14.0"})),
        found(recorded(outputs=moved(3e-7), ran=RAN.model_copy(update={"threads": 1}))),
        found(recorded(outputs=moved(3e-7).model_copy(update={"repeats": False}))),
    ):
        assert lenient.failures == ()
        assert lenient.strictness is Strictness.TOLERANCE
        assert "log-probabilities moved by up to 3e-07 nats" in lenient.remarks


def test_across_versions_a_case_has_the_tolerance_of_its_arithmetic() -> None:
    assert found(recorded(outputs=moved(0.01)), ELSEWHERE).failures == (
        "log-probabilities moved by up to 0.01 nats, more than the tolerance of 0.001",
    )
    assert found(recorded(BF16, outputs=moved(0.01)), ELSEWHERE, BF16).failures == ()
    assert found(recorded(BF16, outputs=moved(1.0)), ELSEWHERE, BF16).failures != ()


def test_a_tolerance_of_one_s_own_is_every_case_s_and_lifts_bit_by_bit() -> None:
    own = OutputRules(same_surroundings=True, tolerance=0.1)
    assert found(recorded(outputs=moved(0.05)), own).failures == ()
    assert found(recorded(outputs=moved(0.2)), own).failures != ()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (((5, 9, 7),), "another token: number 2 is 9, was 6"),
        (((5, 6),), "2 tokens were noted, and 3 before"),
        ((), "no tokens were noted, and 3 before"),
    ],
)
def test_another_token_fails_on_any_machine(tokens: tuple[tuple[int, ...], ...], message: str) -> None:
    for rules in (HERE, ELSEWHERE):
        assert found(recorded(outputs=OUTPUTS.model_copy(update={"tokens": tokens})), rules).failures == (message,)


def test_another_token_of_a_batch_is_named_with_its_sequence() -> None:
    batch = OUTPUTS.model_copy(update={"tokens": ((5, 6), (7, 8))})
    now = batch.model_copy(update={"tokens": ((5, 6), (1, 8))})
    assert found(recorded(outputs=now), outputs=batch).failures == (
        "another token: number 1 of the last sequence is 1, was 7",
    )


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (OUTPUTS.model_copy(update={"logs": ((-1.0, None, -0.25),)}), "log-probabilities are not finite at 1 tokens"),
        (OUTPUTS.model_copy(update={"logs": ((-1.0,),)}), "it tells [1] log-probabilities, and told [3]"),
        (OUTPUTS.model_copy(update={"text": "other"}), "another text was fed"),
        (Outputs(tokens=OUTPUTS.tokens, note="it says no"), "it tells no log-probabilities any more: it says no"),
    ],
)
def test_log_probabilities_that_cannot_be_compared_fail(outputs: Outputs, message: str) -> None:
    (failure,) = found(recorded(outputs=outputs), ELSEWHERE).failures
    assert failure.startswith(message)


def test_a_larger_cache_fails_beyond_the_margin_and_a_smaller_one_is_said() -> None:
    rules = OutputRules(same_surroundings=False, memory_margin=0.05)
    assert found(recorded(kv_cache_mib=2.05), rules).failures == ()
    assert found(recorded(kv_cache_mib=2.4), rules).failures == (
        "the cache takes 20 % more memory: 2.4 MiB, was 2 MiB",
    )
    smaller = found(recorded(kv_cache_mib=1.0), rules)
    assert smaller.failures == ()
    assert "the cache is smaller: 1 MiB, was 2 MiB" in smaller.remarks


def test_a_case_that_no_longer_runs_fails_with_the_engine_s_words_and_one_that_newly_runs_is_said() -> None:
    broken = recorded(status=TrialStatus.UNSUPPORTED, message="DynamicCache has no attribute 'x'")
    assert found(broken).failures == ("it no longer runs (unsupported): DynamicCache has no attribute 'x'",)
    mended = compare_outputs(CASE, broken, recorded(), HERE)
    assert mended.failures == ()
    assert mended.remarks == ("it runs now; before (unsupported): DynamicCache has no attribute 'x'",)
    assert compare_outputs(CASE, broken, broken, HERE).failures == ()


def test_other_weights_are_never_compared_without_a_word() -> None:
    (failure, *_) = found(recorded(model="0" * 64)).failures
    assert failure == "its model has other weights, so nothing is comparable"
