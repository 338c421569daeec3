"""What the code did, held against what the trials recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from plan_samples import make_profile, make_result, make_sweep

from kvray.candidate import CompileMode, DType
from kvray.engines.snippet_case import SnippetRun
from kvray.plan.builder import PlanBuilder
from kvray.plan.code_check import compare, sample_tokens
from kvray.plan.plan import Plan
from kvray.plan.snippet import render_snippet
from kvray.record import TrialRecord
from kvray.store.manifest import CodeCheck, CodeOutcome

TOKENS = (5, 6, 7, 8)
RAN = SnippetRun(tokens=(TOKENS,), cache_class="StaticCache", kernel_prefill="sdpa_flash", kernel_decode="sdpa_math")


def trial(*tokens: int, **changes: Any) -> TrialRecord:
    record = make_result(1, make_profile()).record.with_(dtype=DType.FLOAT32, sample_tokens=json.dumps([tokens]))
    seen = {"cache_class": "StaticCache", "kernel_prefill": "sdpa_flash", "kernel_decode": "sdpa_flash | sdpa_math"}
    return record.with_(**{**seen, **changes})


def test_the_same_tokens_cache_and_kernels_are_what_was_measured() -> None:
    assert compare(RAN, [trial(*TOKENS)]) == (
        CodeOutcome.CHECKED,
        "The winner's code was run once in a separate process: the same tokens, StaticCache, sdpa_flash, sdpa_math, "
        "as measured.",
    )


def test_what_was_not_seen_is_not_compared() -> None:
    told = "The winner's code was run once in a separate process: the same tokens, as measured."
    assert compare(SnippetRun(tokens=(TOKENS,)), [trial(*TOKENS)]) == (CodeOutcome.CHECKED, told)
    assert compare(RAN, [trial(*TOKENS, cache_class=None)])[0] is CodeOutcome.CHECKED


def test_other_tokens_in_32_bits_are_other_code() -> None:
    outcome, text = compare(RAN, [trial(5, 6, 1, 8)])
    assert (outcome, text) == (
        CodeOutcome.DIFFERS,
        "The winner's code does not do what was measured: it generates other tokens: 2 of 4 are the same until they "
        "differ.",
    )


@pytest.mark.parametrize("changes", [{"dtype": DType.BFLOAT16}, {"compile": CompileMode.DEFAULT}])
def test_rounding_may_part_tokens_after_the_first_and_that_is_said(changes: dict[str, Any]) -> None:
    outcome, text = compare(RAN, [trial(5, 6, 1, 8, **changes)])
    assert outcome is CodeOutcome.CHECKED
    assert "the same tokens" not in text
    assert "Of its tokens, 2 of 4 are the same until they differ, as rounding in" in text
    assert compare(RAN, [trial(1, 6, 7, 8, **changes)])[0] is CodeOutcome.DIFFERS


def test_what_the_trials_do_not_agree_on_is_not_asked_of_the_code() -> None:
    trials = [trial(5, 6, 1, 8), trial(5, 6, 2, 8)]
    assert compare(RAN, trials)[0] is CodeOutcome.CHECKED
    assert compare(RAN, [trial(5, 1, 1, 8), trial(5, 1, 2, 8)])[0] is CodeOutcome.DIFFERS


def test_fewer_rows_or_tokens_are_not_the_same() -> None:
    both = json.dumps([TOKENS, TOKENS])
    assert compare(RAN, [trial(sample_tokens=both)])[0] is CodeOutcome.DIFFERS
    assert compare(replace(RAN, tokens=(TOKENS[:3],)), [trial(*TOKENS)])[0] is CodeOutcome.DIFFERS


@pytest.mark.parametrize("text", [None, "", "[", "3", "[3]", "{}"])
def test_records_without_tokens_that_can_be_read_have_none(text: str | None) -> None:
    assert sample_tokens(trial(sample_tokens=text)) == ()


def plan_of(check: CodeCheck) -> Plan:
    profile = make_profile()
    sweep = make_sweep(
        make_result(0, profile), make_result(1, profile, ttft_ms=50.0), profile=profile, code_check=check
    )
    return PlanBuilder(sweep).build()


def test_plan_and_code_say_what_came_of_it_for_their_winner_only() -> None:
    profile = make_profile()
    winner = make_result(1, profile).record.candidate_id
    check = CodeCheck(candidate_id=winner, fingerprint_id=None, outcome=CodeOutcome.CHECKED, text="It was run.")
    plan = plan_of(check)
    assert plan.code_check == check
    assert "\n# Checked: It was run.\n" in render_snippet(plan)
    assert Plan.model_validate_json(plan.to_json()) == plan
    of_another = plan_of(check.model_copy(update={"candidate_id": "another"}))
    assert of_another.code_check is None
    assert "# Checked" not in render_snippet(of_another)
