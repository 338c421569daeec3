"""What the plan says of a sweep, and which rules follow from it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from plan_samples import START, make_candidate, make_plan, make_profile, make_result, make_sweep

from kvray.candidate import Candidate, DeviceType
from kvray.errors import AllTrialsFailedError, LimitsMissedError
from kvray.plan.builder import PlanBuilder
from kvray.plan.plan import Plan, Rule
from kvray.record import Role, TrialResult, TrialStatus
from kvray.workload import Limits

PROFILE = make_profile()
BASELINE, WINNER, LEANER, LEANEST = (make_candidate(name) for name in range(4))


def plan_of(*results: TrialResult, **manifest: Any) -> Plan:
    return PlanBuilder(make_sweep(*results, **{"profile": PROFILE, **manifest})).build()


def rules_on(plan: Plan, part: str) -> list[Rule]:
    return [rule for rule in plan.rules if getattr(rule.when, part) is not None]


def test_the_plan_carries_the_decision_and_what_it_rests_on() -> None:
    before = dt.datetime.now(dt.UTC)
    plan = make_plan()

    assert plan.winner.candidate == WINNER
    assert plan.winner.score == pytest.approx(100.0)
    assert plan.winner.metrics.ttft_ms == pytest.approx(50.0)
    assert plan.winner.metrics.highest_peak_mib == 1000.0
    assert plan.winner.gain is not None
    assert plan.winner.gain.ttft == pytest.approx(1.0)
    assert plan.winner.gain.ttft_interval is not None
    assert plan.winner.gain.ttft_interval.low < 1.0 < plan.winner.gain.ttft_interval.high
    assert plan.winner.confidence is not None
    assert plan.winner.confidence.assumed_process_noise
    assert plan.baseline is not None
    assert plan.baseline.candidate == BASELINE
    assert (plan.run_id, plan.model_id, plan.architecture) == ("r1", "org/model", "LlamaForCausalLM")
    assert (plan.measured_at, plan.records_sha256) == (START, "ab" * 32)
    assert plan.device is DeviceType.CUDA
    assert before <= plan.created_at <= dt.datetime.now(dt.UTC)
    assert (plan.fingerprint.device_name, plan.fingerprint.torch_version) == ("A GPU", "2.13")


def test_remote_code_is_trusted_only_if_the_sweep_did() -> None:
    assert not make_plan().trust_remote_code
    assert make_plan(trust_remote_code=True).trust_remote_code


def test_without_a_winner_there_is_no_plan() -> None:
    failed = make_result(1, PROFILE)
    failed = TrialResult(record=failed.record.with_(status=TrialStatus.OOM))

    with pytest.raises(AllTrialsFailedError, match="Run 'r1' has no winner"):
        plan_of(failed)


def test_where_nothing_keeps_the_limits_there_is_no_plan() -> None:
    profile = make_profile(limits=Limits(max_ttft_ms=50.0))

    with pytest.raises(LimitsMissedError, match="Run 'r1' has no winner"):
        plan_of(make_result(1, profile), profile=profile)


def test_without_a_baseline_the_plan_claims_no_gain() -> None:
    plan = plan_of(make_result(1, PROFILE))

    assert plan.baseline is None
    assert plan.winner.gain is None


def test_a_lone_winner_has_only_the_default_rule() -> None:
    plan = plan_of(make_result(1, PROFILE))

    (rule,) = plan.rules
    assert rule.when.is_always
    assert rule.use == WINNER.candidate_id
    assert rule.evidence == "Winner of 1 ranked: TTFT 100.0 ms, 50.0 tok/s, 1,000 MiB."


def test_ties_are_in_the_table_of_candidates() -> None:
    plan = plan_of(*[make_result(1, PROFILE)] * 3, *[make_result(2, PROFILE, peak_mib=900.0)] * 3)

    assert plan.winner.candidate == LEANER
    assert plan.winner.ties == (WINNER.candidate_id,)
    assert plan.candidates[WINNER.candidate_id].candidate == WINNER


@pytest.mark.parametrize(
    ("free_mib", "chosen"),
    [(1001.0, WINNER), (999.0, LEANER), (801.0, LEANER), (799.0, LEANEST), (1.0, LEANEST), (None, WINNER)],
)
def test_the_candidate_that_fits_the_free_memory_is_chosen(free_mib: float | None, chosen: Candidate) -> None:
    assert make_plan().choose(512, 1, free_mib) == chosen


def test_memory_rules_say_what_peaked_where() -> None:
    leanest_first = rules_on(make_plan(), "free_vram_mib")

    assert [rule.evidence for rule in leanest_first] == [
        f"{LEANER.label} peaked at 800 MiB; {LEANEST.label} ran every cell within 600 MiB.",
        f"{WINNER.label} peaked at 1,000 MiB; {LEANER.label} ran every cell within 800 MiB.",
    ]


def test_a_cpu_has_oom_rules_and_none_about_vram() -> None:
    plan = make_plan(device="cpu")

    assert rules_on(plan, "free_vram_mib") == []
    assert [rule.use for rule in rules_on(plan, "on")] == [LEANER.candidate_id, LEANEST.candidate_id]


def test_without_memory_figures_there_are_no_memory_rules() -> None:
    plan = plan_of(make_result(1, PROFILE, peak_mib=None), make_result(2, PROFILE, ttft_ms=300.0, peak_mib=None))

    assert len(plan.rules) == 1


def test_a_candidate_beyond_a_limit_is_still_a_fallback() -> None:
    profile = make_profile(limits=Limits(max_ttft_ms=150.0))
    plan = plan_of(make_result(1, profile), make_result(2, profile, ttft_ms=300.0, peak_mib=500.0), profile=profile)

    assert plan.fallback_after(WINNER.candidate_id) == LEANER


def test_another_candidate_rules_the_contexts_at_which_it_was_better_and_nothing_beyond() -> None:
    plan = plan_of(
        make_result(1, PROFILE, ttft_ms={128: 100.0, 512: 100.0, 2048: 100.0}),
        make_result(2, PROFILE, ttft_ms={128: 80.0, 512: 80.0, 2048: 400.0}),
    )

    chosen = {context: plan.choose(context, 1) for context in (64, 128, 300, 512, 513, 2048)}

    assert plan.winner.candidate == WINNER
    assert {context for context, one in chosen.items() if one == LEANER} == {128, 300, 512}
    (rule,) = rules_on(plan, "context_tokens")
    assert rule.evidence == (
        f"At 128 to 512 prompt tokens {LEANER.label} scored 12 % higher than {WINNER.label}: "
        "TTFT 80.0 ms, 50.0 tok/s, 1,000 MiB against TTFT 100.0 ms, 50.0 tok/s, 1,000 MiB."
    )


def test_contexts_apart_make_rules_apart() -> None:
    plan = plan_of(
        make_result(1, PROFILE, ttft_ms=100.0),
        make_result(2, PROFILE, ttft_ms={128: 80.0, 512: 400.0, 2048: 80.0}),
    )

    assert [rule.when.context_tokens for rule in rules_on(plan, "context_tokens")] == [
        type(plan.rules[0].when).model_validate({"context_tokens": {"min": one, "max": one}}).context_tokens
        for one in (128, 2048)
    ]
    assert plan.choose(512, 1) == WINNER


@pytest.mark.parametrize(("ttft_ms", "rules"), [(91.0, 0), (90.0, 1)])
def test_a_context_rule_needs_5_percent_more_utility(ttft_ms: float, rules: int) -> None:
    # At half the weight, a first token in 1/1.05² = 0.907 of the time is 5 % more.
    plan = plan_of(
        make_result(1, PROFILE, ttft_ms=100.0), make_result(2, PROFILE, ttft_ms={128: ttft_ms, 512: 200.0, 2048: 200.0})
    )

    assert len(rules_on(plan, "context_tokens")) == rules


def test_a_context_rule_holds_for_its_own_batch_size_only() -> None:
    plan = plan_of(
        make_result(1, PROFILE, ttft_ms=100.0), make_result(2, PROFILE, ttft_ms={128: 50.0, 512: 400.0, 2048: 400.0})
    )

    assert plan.choose(128, 1) == LEANER
    assert plan.choose(128, 2) == WINNER


def test_each_measured_batch_size_is_served_by_its_own_best() -> None:
    profile = make_profile(batch_sizes=(1, 4))
    plan = plan_of(
        make_result(1, profile, ttft_ms=50.0),
        make_result(2, profile, decode_tok_s=40.0, batch_size=4),
        make_result(3, profile, decode_tok_s=30.0, batch_size=4, peak_mib=500.0),
        profile=profile,
    )
    best_of_four, lean_of_four = make_candidate(2, batch_size=4), make_candidate(3, batch_size=4)

    assert plan.winner.candidate == WINNER
    assert [plan.choose(512, size) for size in (1, 2, 4, 8)] == [WINNER, WINNER, best_of_four, WINNER]
    assert plan.choose(512, 4, 900.0) == lean_of_four
    assert plan.choose(512, 1, 900.0) == WINNER
    assert plan.fallback_after(best_of_four.candidate_id) == lean_of_four
    assert plan.fallback_after(WINNER.candidate_id) is None


def test_every_rule_has_evidence_with_a_number() -> None:
    assert all(any(letter.isdigit() for letter in rule.evidence) for rule in make_plan().rules)


def test_the_builder_keeps_its_result_as_it_was() -> None:
    sweep = make_sweep(make_result(0, PROFILE, role=Role.BASELINE), profile=PROFILE)
    first, second = PlanBuilder(sweep).build(), PlanBuilder(sweep).build()

    assert first.model_copy(update={"created_at": second.created_at}) == second


def test_the_plan_says_what_is_to_be_known_of_the_model() -> None:
    plan = make_plan(model_notes=("Its weights are packed.",))
    assert plan.notes == ("Its weights are packed.",)
    assert Plan.model_validate_json(plan.to_json()) == plan
    assert Plan.model_validate_json(plan.model_dump_json(exclude={"notes"})).notes == ()
