"""Who is ranked, in which order, and why the others are not."""

from __future__ import annotations

import random
from typing import Any

import pytest
from analysis_samples import make_candidate, make_profile, make_record, make_result
from hypothesis import given
from hypothesis import strategies as st

from kvray.analysis.ranking import Ranking, rank
from kvray.record import Phase, Role, TrialResult, TrialStatus
from kvray.workload import Cell, Limits

PROFILE = make_profile()
BASELINE, FAST, LEAN = make_candidate(0), make_candidate(1), make_candidate(2)


def ranked_ids(ranking: Ranking) -> list[str]:
    return [entry.record.candidate_id for entry in ranking.entries]


def only_reason(*results: TrialResult, **profile: Any) -> str:
    (trial,) = rank(results, make_profile(**profile)).unranked
    return trial.reason


def test_candidates_are_ordered_by_utility() -> None:
    ranking = rank(
        [
            make_result(BASELINE, PROFILE, role=Role.BASELINE),
            make_result(FAST, PROFILE, ttft_ms=80.0, decode_tok_s=60.0),
            make_result(LEAN, PROFILE, ttft_ms=300.0, peak_mib=900.0),
        ],
        PROFILE,
    )

    assert ranked_ids(ranking) == [one.candidate_id for one in (FAST, BASELINE, LEAN)]
    assert [entry.rank for entry in ranking.entries] == [1, 2, 3]
    assert ranking.winner.score > ranking.entries[1].score
    assert ranking.winner.on_pareto_front


def test_equal_utility_is_settled_by_memory_then_by_label() -> None:
    speed_only = make_profile(weight_ttft=0.5, weight_throughput=0.5, weight_memory=0.0)
    ranking = rank(
        [
            make_result(make_candidate(3), speed_only),
            make_result(make_candidate(2), speed_only),
            make_result(make_candidate(9), speed_only, peak_mib=999.0),
        ],
        speed_only,
    )

    assert ranked_ids(ranking) == [make_candidate(name).candidate_id for name in (9, 2, 3)]


def test_the_winner_of_everything_scores_100() -> None:
    ranking = rank([make_result(BASELINE, PROFILE), make_result(FAST, PROFILE, ttft_ms=90.0)], PROFILE)

    assert ranking.winner.score == pytest.approx(100.0)
    assert not ranking.entries[1].on_pareto_front


def test_gain_is_the_relative_change_against_the_baseline() -> None:
    ranking = rank(
        [
            make_result(BASELINE, PROFILE, role=Role.BASELINE),
            make_result(FAST, PROFILE, ttft_ms=50.0, decode_tok_s=75.0, peak_mib=800.0),
        ],
        PROFILE,
    )

    gain, own = ranking.winner.gain, ranking.entries[1].gain
    assert gain is not None
    assert [gain.ttft, gain.throughput, gain.memory] == pytest.approx([1.0, 0.5, 0.25])
    assert own is not None
    assert (own.ttft, own.throughput, own.memory) == (0.0, 0.0, 0.0)


def test_without_a_baseline_there_is_no_gain() -> None:
    ranking = rank([make_result(FAST, PROFILE)], PROFILE)

    assert ranking.winner.gain is None
    assert ranking.winner.break_even_tokens is None
    assert ranking.baseline is None


def test_without_peaks_there_is_a_gain_but_none_of_memory() -> None:
    ranking = rank(
        [
            make_result(BASELINE, PROFILE, role=Role.BASELINE, peak_mib=None),
            make_result(FAST, PROFILE, ttft_ms=50.0, peak_mib=None),
        ],
        PROFILE,
    )

    gain = ranking.winner.gain
    assert gain is not None
    assert gain.ttft == pytest.approx(1.0)
    assert gain.memory is None


def test_a_candidate_without_a_peak_is_not_compared_with_others_that_have_one() -> None:
    ranking = rank([make_result(BASELINE, PROFILE), make_result(FAST, PROFILE, peak_mib=None)], PROFILE)

    assert ranked_ids(ranking) == [BASELINE.candidate_id]
    assert "peak memory was not measured" in ranking.unranked[0].reason


def test_all_processes_of_a_candidate_are_pooled_under_the_searchs_record() -> None:
    search = make_result(FAST, PROFILE, ttft_ms=100.0, repeats=1)
    confirming = [make_result(FAST, PROFILE, ttft_ms=ttft, repeats=1, role=Role.CONFIRM) for ttft in (60.0, 70.0)]

    ranking = rank([*confirming, search], PROFILE)

    assert ranking.winner.record == search.record
    assert ranking.winner.metrics.ttft_ms == pytest.approx(70.0)
    assert [cell.runs for cell in ranking.winner.cells] == [3, 3]
    assert ranking.unranked == ()


def test_the_baseline_keeps_its_role_when_it_is_confirmed() -> None:
    confirming = make_result(BASELINE, PROFILE, role=Role.CONFIRM)
    baseline = make_result(BASELINE, PROFILE, role=Role.BASELINE)

    ranking = rank([confirming, baseline], PROFILE)

    assert ranking.baseline_id == BASELINE.candidate_id
    assert ranking.winner.record == baseline.record


def test_16_token_runs_of_rung_0_do_not_count() -> None:
    whole = make_result(FAST, PROFILE, ttft_ms=100.0)
    quick = make_result(FAST, PROFILE, ttft_ms=1.0, cells=PROFILE.cells(1, rung=0), repeats=1, trial_id="quick")
    rung_0 = tuple(run.__class__(**{**vars(run), "rung": 0}) for run in quick.runs)

    ranking = rank([TrialResult(record=whole.record, runs=(*rung_0, *whole.runs))], PROFILE)

    assert ranking.winner.metrics.ttft_ms == pytest.approx(100.0)


def test_a_trial_that_lacks_a_cell_is_listed_with_the_cells_label() -> None:
    assert only_reason(make_result(FAST, PROFILE, cells=[Cell(128, 32, 1)])) == (
        "not every cell was measured; missing: 512→32"
    )


def test_batch_sizes_are_complete_on_their_own_cells() -> None:
    both = make_profile(batch_sizes=(1, 4))
    large = make_candidate(5, batch_size=4)

    ranking = rank([make_result(FAST, both), make_result(large, both, decode_tok_s=150.0)], both)

    assert ranked_ids(ranking) == [large.candidate_id, FAST.candidate_id]
    assert all(cell.cell.batch_size == 4 for cell in ranking.winner.cells)


def test_every_missed_limit_is_named_with_both_numbers() -> None:
    limits = Limits(max_ttft_ms=500.0, min_decode_tok_s=60.5, max_peak_mib=900.0)

    assert only_reason(make_result(FAST, PROFILE, ttft_ms=812.0), limits=limits) == (
        "TTFT 812 ms at 128→32, 1.62× the limit of 500 ms; decode throughput 50 tok/s at 128→32, 17 % under the "
        "limit of 60.5 tok/s; peak memory 1,000 MiB at 128→32, 11 % over the limit of 900 MiB"
    )


def test_values_at_the_limits_are_within_them() -> None:
    limits = Limits(max_ttft_ms=100.0001, min_decode_tok_s=49.9999, max_peak_mib=1000.0001)

    assert len(rank([make_result(FAST, PROFILE)], make_profile(limits=limits)).entries) == 1


def test_a_memory_limit_needs_a_measured_peak() -> None:
    reason = only_reason(make_result(FAST, PROFILE, peak_mib=None), limits=Limits(max_peak_mib=900.0))

    assert reason == "peak memory was not measured, so the limit of 900 MiB cannot be checked"


def test_a_candidate_beyond_a_limit_keeps_its_metrics_for_fallbacks_and_gains() -> None:
    profile = make_profile(limits=Limits(max_ttft_ms=90.0))
    ranking = rank(
        [make_result(BASELINE, profile, role=Role.BASELINE), make_result(FAST, profile, ttft_ms=50.0)], profile
    )

    assert ranking.winner.gain is not None
    assert ranking.winner.gain.ttft == pytest.approx(1.0)
    assert ranking.baseline is ranking.unranked[0]
    assert ranking.unranked[0].metrics is not None


@pytest.mark.parametrize(
    ("status", "values", "reason"),
    [
        (TrialStatus.STOPPED, {"rung": 0}, "stopped after rung 0"),
        (TrialStatus.STOPPED, {}, "stopped before its first rung was complete"),
        (TrialStatus.OOM, {"phase": Phase.LOAD}, "ran out of memory while loading the model"),
        (TrialStatus.TIMEOUT, {"phase": Phase.WARMUP}, "took longer than allowed while warming up"),
        (TrialStatus.CRASHED, {"phase": Phase.MEASURE}, "its process died while measuring"),
        (TrialStatus.UNSUPPORTED, {"phase": Phase.LOAD}, "not supported by the engine"),
        (TrialStatus.SUBSTITUTED, {}, "something other than what was asked for ran"),
        (TrialStatus.QUALITY, {}, "loses more quality than allowed"),
        (TrialStatus.REJECTED, {}, "not launched because it cannot work"),
        (TrialStatus.SKIPPED, {}, "not launched by the search"),
        (TrialStatus.ERROR, {"phase": Phase.START}, "failed with an error while starting"),
    ],
)
def test_each_end_has_a_sentence_and_the_trials_own_message(
    status: TrialStatus, values: dict[str, Any], reason: str
) -> None:
    quiet = TrialResult(record=make_record(FAST, status=status, **values))
    talking = TrialResult(record=make_record(FAST, status=status, message="signal 9", **values))

    assert only_reason(quiet) == reason
    assert only_reason(talking) == f"{reason}: signal 9"


def test_every_status_but_ok_and_stopped_has_a_reason() -> None:
    for status in TrialStatus:
        if status is not TrialStatus.OK:
            assert only_reason(TrialResult(record=make_record(FAST, status=status)))


def test_a_failed_confirming_trial_is_listed_beside_the_ranked_candidate() -> None:
    failed = TrialResult(record=make_record(FAST, status=TrialStatus.CRASHED, role=Role.CONFIRM))

    ranking = rank([make_result(FAST, PROFILE), failed], PROFILE)

    assert len(ranking.entries) == 1
    assert [one.record for one in ranking.unranked] == [failed.record]


def test_a_trial_stopped_after_every_full_length_cell_keeps_its_metrics() -> None:
    stopped = make_result(LEAN, PROFILE, repeats=1, status=TrialStatus.STOPPED, rung=1, peak_mib=500.0)

    (trial,) = rank([stopped], PROFILE).unranked

    assert trial.metrics is not None
    assert trial.metrics.peak_mib == pytest.approx(500.0)


def break_even(baseline: dict[str, Any], winner: dict[str, Any]) -> float | None:
    results = [
        make_result(BASELINE, PROFILE, role=Role.BASELINE, **baseline),
        make_result(FAST, PROFILE, **{"ttft_ms": 10.0, **winner}),
    ]
    ranking = rank(results, PROFILE)
    assert ranking.winner.record.candidate_id == FAST.candidate_id
    return ranking.winner.break_even_tokens


COLD = {"load_s": 1.0, "warmup_s": 2.0}


def test_break_even_is_extra_cold_seconds_over_seconds_saved_per_token() -> None:
    # 10 s more, and 1/50 - 1/100 = 0.01 s less per token.
    slow_start = {"load_s": 1.5, "warmup_s": 11.5, "decode_tok_s": 100.0}

    assert break_even(COLD, slow_start) == pytest.approx(1000.0)


def test_break_even_is_0_without_extra_cold_cost() -> None:
    assert break_even(COLD, {**COLD, "decode_tok_s": 40.0}) == 0.0


def test_break_even_never_comes_without_a_gain_per_token() -> None:
    assert break_even(COLD, {"load_s": 9.0, "warmup_s": 2.0, "decode_tok_s": 50.0}) is None


@pytest.mark.parametrize("known", [{}, {"load_s": 1.0}, {"warmup_s": 1.0}])
def test_break_even_is_unknown_where_a_cold_cost_is(known: dict[str, float]) -> None:
    assert break_even(COLD, {**known, "decode_tok_s": 100.0}) is None
    assert break_even(known, {**COLD, "decode_tok_s": 100.0}) is None


def test_break_even_counts_what_steady_calls_would_not_have_cost() -> None:
    # Its warm-up calls took 60 s together, but only 10 s more than as many steady ones.
    slow_start = {"load_s": 1.0, "warmup_s": 60.0, "cold_s": 11.5, "decode_tok_s": 100.0}

    assert break_even({**COLD, "cold_s": 1.5}, slow_start) == pytest.approx(1000.0)


def test_break_even_of_records_without_that_column_counts_all_warm_up_calls() -> None:
    assert break_even({"cold_s": 3.0}, {"load_s": 1.5, "warmup_s": 11.5, "decode_tok_s": 100.0}) == pytest.approx(
        1000.0
    )


def test_break_even_of_the_baseline_is_0() -> None:
    ranking = rank([make_result(BASELINE, PROFILE, role=Role.BASELINE)], PROFILE)

    assert ranking.winner.break_even_tokens == 0.0


@given(st.randoms(), st.lists(st.floats(min_value=1.0, max_value=9.0), min_size=5, max_size=5))
def test_the_order_of_results_does_not_matter(shuffler: random.Random, ttfts: list[float]) -> None:
    results = [
        make_result(make_candidate(index % 4), PROFILE, ttft_ms=ttft, role=Role.SEARCH if index < 4 else Role.CONFIRM)
        for index, ttft in enumerate(ttfts)
    ]
    results.append(TrialResult(record=make_record(LEAN, status=TrialStatus.OOM)))
    shuffled = list(results)
    shuffler.shuffle(shuffled)

    assert rank(shuffled, PROFILE) == rank(results, PROFILE)
