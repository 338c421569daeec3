from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from manifests import plain_manifest
from report_sweeps import (
    BASELINE,
    PROFILE,
    WINNER,
    candidate,
    ended,
    info_of,
    limits_missed,
    manifest,
    measured,
    realistic_results,
    unsuccessful_results,
)

from kvray.candidate import Candidate
from kvray.record import Role, TrialResult, TrialStatus
from kvray.report.disturbances import disturbances
from kvray.report.info import ReportInfo
from kvray.report.markdown import render_markdown
from kvray.report.verdict import Tone
from kvray.store.manifest import CodeCheck, CodeOutcome
from kvray.workload import Limits, override_profile


def baseline(**values: float | None) -> TrialResult:
    return measured(BASELINE, role=Role.BASELINE, **{"peak_mib": 900.0, **values})  # type: ignore[arg-type]


def test_the_headline_names_winner_gains_and_baseline(realistic: ReportInfo) -> None:
    sentence = realistic.headline.sentence
    assert sentence.startswith("dynamic/sdpa_flash/bfloat16 is best here for chat-agent: first token 2.01× as fast, ")
    assert sentence.endswith("less memory compared with the baseline dynamic/sdpa/float32.")


def test_only_a_winner_that_leads_both_speeds_is_called_fastest() -> None:
    fastest = info_of([baseline(), measured(WINNER, speed=1.5)])
    leanest = info_of(
        [baseline(), measured(WINNER, speed=1.5), measured(candidate("static"), speed=1.6, peak_mib=9000)]
    )
    assert "is fastest here: first token" in fastest.headline.sentence
    assert "is best here for chat-agent" in leanest.headline.sentence


def test_a_winning_baseline_is_said_to_be_unbeaten() -> None:
    info = info_of([baseline(), measured(WINNER, speed=0.5)])
    assert info.headline.sentence == (
        "Nothing beats the baseline here: dynamic/sdpa/float32 is the best of 2 for chat-agent."
    )
    assert [stat.change for stat in info.headline.stats] == [None, None, None]


def test_a_gain_within_noise_is_not_claimed() -> None:
    leaner = measured(candidate("static"), speed=1.005, prefill=1.5, peak_mib=500)
    info = info_of([baseline(), leaner])
    assert info.headline.sentence.startswith(
        "static/sdpa/float32 is best here for chat-agent: first token 1.52× as fast, the same tok/s within noise "
        "(−5 % to +8 %) and "
    )
    throughput = info.headline.stats[1]
    assert throughput.change is not None
    assert throughput.change.endswith(", within noise")
    assert throughput.is_better is None


def test_a_tie_with_the_baseline_claims_no_gain() -> None:
    info = info_of([baseline(), measured(WINNER, speed=1.001)])
    assert info.rows[0].is_baseline
    assert info.headline.sentence.startswith(("No measurable gain", "Nothing beats the baseline here: "))


def test_ties_are_explained_by_their_scores() -> None:
    rival = candidate("dynamic", "sdpa", "bfloat16")
    info = info_of([baseline(), measured(WINNER, speed=1.9, peak_mib=600), measured(rival, speed=1.92, peak_mib=609)])
    assert "is among the fastest here: first token" in info.headline.sentence
    (note,) = info.headline.notes
    assert re.fullmatch(
        r"dynamic/sdpa/bfloat16 and dynamic/sdpa_flash/bfloat16 cannot be told apart here: dynamic/sdpa_flash/bfloat16 "
        r"scores 0\.\d\d to 1\.\d\d times as high as dynamic/sdpa/bfloat16 \(95 % interval\)\.",
        note,
    )
    assert [row.is_tied for row in info.rows] == [True, True, False]


def test_a_leaner_tie_is_recommended_and_the_note_says_why() -> None:
    rival = candidate("dynamic", "sdpa", "bfloat16")
    often = [
        measured(what, speed=speed, peak_mib=peak_mib, process=process)
        for process in range(6)
        for what, speed, peak_mib in ((WINNER, 1.9, 600.0), (rival, 1.905, 660.0))
    ]
    speed_alone = PROFILE.model_copy(update={"weight_ttft": 0.5, "weight_throughput": 0.5, "weight_memory": 0.0})
    info = info_of([baseline(), *often], profile=speed_alone)
    assert info.rows[0].label == "dynamic/sdpa_flash/bfloat16"
    (note,) = info.headline.notes
    assert note.endswith(
        "times as high as dynamic/sdpa_flash/bfloat16 (95 % interval). dynamic/sdpa_flash/bfloat16 is recommended "
        "because it needs 9 % less memory than dynamic/sdpa/bfloat16."
    )


def test_processes_of_two_kinds_are_said_with_both_values() -> None:
    trials = [
        measured(WINNER, speed=speed, role=Role.SEARCH if place == 0 else Role.CONFIRM)
        for place, speed in enumerate([2.6, 3.3, 2.6, 3.3])
    ]
    notes = " ".join(info_of([baseline(), *trials]).headline.notes)
    assert "Processes of dynamic/sdpa_flash/bfloat16 fall into two groups" in notes
    assert "(2 of them)" in notes


def test_one_ranked_candidate_is_compared_with_nothing() -> None:
    info = info_of([measured(WINNER)])
    assert "the only candidate that could be ranked: first token in" in info.headline.sentence
    assert info.headline.confidence == "There is only one candidate in the ranking, so nothing to compare it with."
    assert info.headline.notes == ("The baseline was not measured, so there is nothing to compare with.",)


def test_a_failed_baseline_is_named_with_its_reason() -> None:
    failed = ended(BASELINE, TrialStatus.OOM, "Needed 9 GiB.")
    info = info_of([failed, measured(WINNER), measured(candidate("static"), speed=0.5)])
    (note,) = info.headline.notes
    assert note.startswith("The baseline dynamic/sdpa/float32 is not ranked (ran out of memory: Needed")
    assert info.baseline is None
    assert {row.ttft_gain for row in info.rows} == {None}
    assert {grid.reference for grid in info.grids} == {"the best of each cell"}


def test_a_baseline_beyond_a_limit_is_compared_with_all_the_same() -> None:
    profile = PROFILE.model_copy(update={"limits": Limits(min_decode_tok_s=30)})
    info = info_of([baseline(), measured(WINNER, speed=1.9)], profile=profile)
    assert "compared with the baseline dynamic/sdpa/float32" in info.headline.sentence
    assert info.headline.notes[0].startswith(
        f"{WINNER.label} keeps the limits in every cell. The worst: decode throughput 46 tok/s at "
    )
    assert "is not ranked (decode throughput" in info.headline.notes[-1]
    assert info.headline.notes[-1].endswith("but gains are still against it.")
    assert {grid.reference for grid in info.grids} == {"the baseline"}


def test_where_nothing_keeps_the_limits_the_headline_names_what_comes_nearest() -> None:
    info = limits_missed([baseline(), measured(WINNER, speed=1.9), ended(candidate("static"), TrialStatus.OOM, "a")])
    assert info.headline.sentence.startswith(
        f"No candidate keeps the limits. {WINNER.label} comes nearest: TTFT 1,446 ms at 2048→32, 45 % over the limit "
        "of 1,000 ms; decode throughput "
    )
    assert info.headline.notes == ()
    assert [near.label for near in info.nearest] == [WINNER.label, f"{BASELINE.label} (baseline)"]
    assert info.rows == ()


def test_where_nothing_keeps_the_limits_all_that_was_measured_is_a_table_with_its_misses() -> None:
    info = limits_missed([baseline(), measured(WINNER, speed=1.9), ended(candidate("static"), TrialStatus.OOM, "a")])
    assert [(row.label, row.is_baseline) for row in info.missed] == [(WINNER.label, False), (BASELINE.label, True)]
    assert info.missed[0].missed == {"max_ttft_ms", "min_decode_tok_s"}
    assert info.missed[0].misses.startswith("TTFT 1,446 ms at 2048→32, 45 % over the limit of 1,000 ms; decode")
    assert info.missed[0].decode_tok_s == pytest.approx(1.9 * (info.missed[1].decode_tok_s or 0), rel=0.05)
    assert [group.status for group in info.groups] == ["oom"]


def test_beside_a_winner_nobody_asks_for_misses() -> None:
    profile = PROFILE.model_copy(update={"limits": Limits(min_decode_tok_s=30)})
    info = info_of([baseline(), measured(WINNER, speed=1.9)], profile=profile)
    assert (info.nearest, info.groups) == ((), ())
    assert [row.label for row in info.missed] == [BASELINE.label]


def test_limits_and_objective_are_told_with_how_it_was_measured() -> None:
    limits = Limits(max_ttft_ms=400, max_itl_ms=50, min_decode_tok_s=5, max_peak_mib=8192)
    profile = PROFILE.with_objective("latency").model_copy(update={"limits": limits})
    method = {fact.name: fact.text for fact in info_of([baseline()], profile=profile).method}
    assert method["Limits"].startswith(
        "first token at most 400 ms; between tokens (p95) at most 50.0 ms; at least 5.00 tok/s; peak memory at most "
        "8,192 MiB; quality loss at most 0.100 nats per token. A limit must hold in every cell. "
    )
    assert method["Score"].startswith(
        "Weighted geometric mean of first token (0.7), throughput (0.2) and memory (0.1), the objective latency;"
    )
    free = PROFILE.model_copy(update={"limits": Limits(max_quality_loss=None)})
    assert "Limits" not in {fact.name for fact in info_of([baseline()], profile=free).method}


def test_when_everything_failed_the_report_says_so() -> None:
    info = info_of([ended(BASELINE, TrialStatus.OOM, "a"), ended(WINNER, TrialStatus.CRASHED, "b")])
    assert info.headline.sentence == "Nothing could be ranked: all 2 trials that ran failed."
    assert (info.winner, info.rows, info.grids, info.front) == (None, (), (), ())


def test_when_nothing_was_launched_the_report_says_so() -> None:
    info = info_of([ended(BASELINE, TrialStatus.REJECTED, "needs CUDA")])
    assert info.headline.sentence == "Nothing was measured: no candidate was launched."


def test_missing_memory_leaves_speed_to_be_reported() -> None:
    info = info_of([baseline(peak_mib=None), measured(WINNER, speed=1.9, peak_mib=None)])
    assert [stat.name for stat in info.headline.stats] == ["First token", "Throughput"]
    assert {row.peak_mib for row in info.rows} == {None}
    assert info.fallbacks == ()


def test_break_even_is_told_for_a_slow_starter() -> None:
    compiled = measured(WINNER, speed=1.5, load_s=0.2, warmup_s=60.0)
    info = info_of([baseline(), compiled])
    (note,) = info.headline.notes
    assert note.startswith(
        f"{WINNER.label} takes longer to load and warm up than the baseline; that is made up for after "
    )
    assert info.rows[0].break_even in note


def test_a_slower_start_of_what_is_also_slower_is_never_made_up() -> None:
    info = info_of([baseline(), measured(WINNER, speed=0.5, load_s=9.0)])
    assert [row.break_even for row in info.rows] == ["–", "never"]
    slow = info.rows[1].break_even_order
    assert slow is not None
    assert slow > 1e12, "never sorts behind every number of tokens"


@pytest.mark.parametrize("speed", [0.5, 1.5])
def test_what_starts_no_slower_has_nothing_to_make_up(speed: float) -> None:
    row = next(row for row in info_of([baseline(), measured(WINNER, speed=speed)]).rows if not row.is_baseline)
    assert (row.break_even, row.break_even_order) == ("–", None)


def test_an_unknown_cold_cost_leaves_the_break_even_open() -> None:
    info = info_of([baseline(), measured(WINNER, speed=1.5, load_s=None)])
    assert (info.rows[0].break_even, info.rows[0].break_even_order) == ("–", None)


def test_a_winner_that_forgets_or_rounds_says_what_that_costs() -> None:
    window = candidate("sliding_window", "sdpa", "bfloat16", cache_params=(("window", 64), ("sinks", 4)))
    told = info_of([baseline(), measured(window, speed=1.5, kl_mean=0.0054, top1_agreement=0.94)]).headline.notes
    assert told[0] == (
        f"The cache of {window.label} forgets the middle of a long text: KL 0.0054 nats per token against the "
        "baseline, the same first choice at 94.0 % of tokens. To leave it out, name other caches with --cache."
    )
    untold = info_of([baseline(), measured(window, speed=1.5, kl_mean=None)]).headline.notes
    assert untold[0].endswith("was not measured.")
    exact = info_of([baseline(), measured(WINNER, speed=1.5, kl_mean=0.0015, top1_agreement=0.97)]).headline.notes
    assert not any("The cache" in note for note in exact)


def test_a_loss_that_no_cache_explains_is_told_as_well() -> None:
    told = info_of([baseline(), measured(WINNER, speed=1.5, kl_mean=0.03, top1_agreement=0.9)]).headline.notes
    assert (
        f"The output of {WINNER.label} differs from the baseline: KL 0.03 nats per token against the baseline, the "
        "same first choice at 90.0 % of tokens."
    ) in told


def test_a_loss_that_is_known_within_bounds_is_told_as_bounds_and_what_they_leave_open_is_said() -> None:
    bounds: dict[str, Any] = {"kl_mean": 0.002, "kl_upper": 0.4, "nll_delta": 0.01, "nll_delta_upper": 0.3}
    info = info_of([baseline(), measured(WINNER, speed=1.5, **bounds)])
    assert info.headline.notes[0] == (
        f"{WINNER.label} is not shown to keep the limit of quality: its engine tells the most probable tokens only, so "
        "the loss is between 0.002 and 0.4 nats per token. The limit is 0.1."
    )
    assert facts_of(info)["Quality"].endswith(f"neither kept nor missed for certain: {WINNER.label}.")
    page = render_markdown(info)
    assert "| 0.002 to 0.4 | 0.01 to 0.3 |" in page
    assert "Two numbers are bounds: the engine tells the most probable tokens only." in page
    sure = info_of([baseline(), measured(WINNER, speed=1.5, **{**bounds, "kl_upper": 0.05})])
    assert not any("not shown" in note for note in sure.headline.notes)
    assert "for certain" not in facts_of(sure)["Quality"]


def test_a_candidate_that_never_became_steady_is_named() -> None:
    info = info_of([baseline(), measured(WINNER, speed=1.5, warmed_up=False)])
    assert any(
        note.startswith(f"{WINNER.label} was still becoming faster or slower when its warm-up ended: ")
        for note in info.headline.notes
    )
    assert facts_of(info)["Warm-up"].endswith(f"Not steady within the calls allowed: {WINNER.label}.")
    assert [cost.warmed_up for cost in info.cold] == [False, None]


def test_energy_is_explained_where_it_was_measured(realistic: ReportInfo) -> None:
    assert "Energy" not in facts_of(realistic)
    info = info_of([measured(BASELINE, role=Role.BASELINE, energy_j_per_tok=0.7)])
    assert facts_of(info)["Energy"].startswith("Per generated token, prefill included: ")


def test_rows_count_the_processes_and_runs_they_rest_on(realistic: ReportInfo) -> None:
    assert (realistic.rows[0].processes, realistic.rows[0].runs) == (3, 54)
    assert (realistic.rows[-1].processes, realistic.rows[-1].runs) == (1, 18)


def test_memory_is_a_multiple_of_the_baselines(realistic: ReportInfo) -> None:
    winner, base = realistic.rows[0], realistic.baseline
    assert base is not None
    assert base.peak_mib is not None
    assert winner.peak_mib is not None
    assert winner.memory_factor == pytest.approx(winner.peak_mib / base.peak_mib)


def test_cells_are_shown_against_the_baseline(realistic: ReportInfo) -> None:
    ttft, throughput = realistic.grids
    assert ttft.columns == ("512→32", "512→64", "1024→32", "1024→64", "2048→32", "2048→64")
    base = next(row for row in ttft.rows if row.is_baseline)
    assert [cell.times_as_good for cell in base.values if cell] == [1.0] * 6
    assert all(cell and cell.times_as_good == pytest.approx(2, rel=0.1) for cell in ttft.rows[0].values)
    assert all(cell and cell.times_as_good == pytest.approx(1.31, rel=0.1) for cell in throughput.rows[0].values)


def test_the_front_rises_with_ttft_and_throughput(realistic: ReportInfo) -> None:
    assert list(realistic.front) == sorted(realistic.front)
    assert len({tok_s for _, tok_s in realistic.front}) == len(realistic.front) > 1
    assert [tok_s for _, tok_s in realistic.front] == sorted(tok_s for _, tok_s in realistic.front)


def test_every_end_is_listed_with_its_reason_and_log(realistic: ReportInfo) -> None:
    groups = {group.status: group for group in realistic.groups}
    assert list(groups) == ["oom", "timeout", "crashed", "substituted", "stopped", "rejected", "skipped"]
    assert "8.0 GiB" in groups["oom"].items[0].reason
    assert "alloc_cpu.cpp" in (groups["oom"].items[0].log_tail or "")
    assert sum(group.count for group in groups.values()) == len(unsuccessful_results())


def test_what_was_not_tried_is_listed_with_the_reason(realistic: ReportInfo) -> None:
    assert [(one.axis, one.value) for one in realistic.left_out] == [("cache", "offloaded"), ("dtype", "float16")]
    assert realistic.left_out[0].reason.endswith("needs a CUDA GPU")


def test_equal_reasons_are_listed_once(realistic: ReportInfo) -> None:
    rejected = next(group for group in realistic.groups if group.status == "rejected")
    assert [len(item.labels) for item in rejected.items] == [4, 4]


def test_a_reason_that_many_share_is_listed_once_whatever_their_logs_say() -> None:
    failed = [
        ended(candidate("static", kernel), TrialStatus.CRASHED, "Died by signal 9.", log_tail=f"step {number}")
        for number, kernel in enumerate(("sdpa", "eager"))
    ]
    (group,) = info_of([baseline(), *failed]).groups
    (item,) = group.items
    assert (group.count, len(item.labels), item.log_tail) == (2, 2, "step 1")


def test_a_failed_confirmation_is_told_from_the_candidates_own_trial() -> None:
    results = [baseline(), measured(WINNER, speed=1.9)]
    results.append(ended(WINNER, TrialStatus.CRASHED, "Signal 9.", role=Role.CONFIRM, trial_id="confirm-1"))
    (group,) = info_of(results).groups
    assert group.items[0].labels == ("dynamic/sdpa_flash/bfloat16 (confirming process)",)


def test_counts_add_up(realistic: ReportInfo) -> None:
    counts = realistic.counts
    assert counts.trials == len(realistic_results())
    assert counts.trials == counts.launched + counts.rejected + counts.skipped
    assert counts.sentence.startswith(
        "25 trials launched, 6 of them to confirm, 13 candidates ranked, 4 failed, 2 stopped early, 8 rejected"
    )


def test_memory_of_a_candidate_on_several_gpus_is_told_of_one_and_of_all() -> None:
    spread = replace(WINNER, parallelism=2)
    one = measured(spread, device_peak_mib=12_000.0, device_peak_gpu_mib=7_000.0)
    facts = facts_of(info_of([measured(BASELINE, role=Role.BASELINE, device_peak_mib=9_000.0), one]))
    told = f"{spread.label}: 7,000 MiB on the GPU that held most, 12,000 MiB on all of them"
    assert facts["Memory of several GPUs"] == told
    assert "Memory of several GPUs" not in facts_of(info_of([baseline()]))


def test_the_method_says_what_memory_means_and_what_ran(realistic: ReportInfo) -> None:
    facts = {fact.name: fact.text for fact in realistic.method}
    assert facts["Peak memory"] == manifest().memory_note
    assert facts["Scheduling"] == "niceness 0; threads 2; usable CPUs 2"
    assert "aten::bmm" in facts["Kernels in decode"]
    assert "candidate's own cache" in facts["First token (TTFT)"]
    assert facts["Confirming"].startswith("6 confirming processes")


def test_numbers_that_differ_between_trials_are_listed_by_size() -> None:
    info = info_of([baseline(threads=10), measured(WINNER, threads=2), measured(candidate("static"), threads=1)])
    facts = {fact.name: fact.text for fact in info.method}
    assert "threads 1, 2, 10" in facts["Scheduling"]


def test_quality_that_was_not_measured_is_explained() -> None:
    results = [measured(BASELINE, role=Role.BASELINE, kl_mean=None, top1_agreement=None)]
    info = info_of(results, quality_note="Not measured: the weights are random.")
    assert info.qualities == ()
    assert "Not measured: the weights are random." in [fact.text for fact in info.method]


def test_quality_is_told_with_its_limit_or_with_why_it_was_not_measured() -> None:
    info = info_of([measured(BASELINE, role=Role.BASELINE, nll_delta=0.021, nll_delta_se=0.014)])
    assert facts_of(info)["Quality"].endswith("compared with the baseline; limit 0.100 nats per token.")
    assert (info.qualities[0].nll_delta, info.qualities[0].nll_delta_se) == (0.021, 0.014)
    unmeasured = measured(BASELINE, role=Role.BASELINE, kl_mean=None, top1_agreement=None, quality_note="no reference")
    assert facts_of(info_of([unmeasured]))["Quality"] == "Not measured: no reference."


def test_candidates_that_ran_alike_are_observed_together(realistic: ReportInfo) -> None:
    first = realistic.observations[0]
    assert first.cache_class == "DynamicCache[DynamicLayer]"
    assert set(first.labels) >= {"dynamic/sdpa_flash/bfloat16", "dynamic/sdpa/float32"}
    assert len(realistic.observations) < len(realistic.rows)


def test_cold_costs_include_those_of_trials_that_failed_later(realistic: ReportInfo) -> None:
    labels = [cost.label for cost in realistic.cold]
    assert labels[0] == "dynamic/sdpa_flash/bfloat16"
    assert "static/eager/float32" in labels


def test_the_command_that_repeats_the_sweep_is_quoted_for_a_shell() -> None:
    info = info_of([baseline()], arguments=("a model", "--profile", "rag"))
    assert "kvray tune 'a model' --profile rag" in [fact.text for fact in info.environment]


def disturbed(result: TrialResult, runs: int) -> TrialResult:
    """`result` with its first `runs` runs marked."""
    marked = tuple(replace(run, disturbed=number < runs) for number, run in enumerate(result.runs))
    return replace(result, runs=marked)


def facts_of(info: ReportInfo) -> dict[str, str]:
    return {fact.name: fact.text for fact in info.method}


def test_a_sweep_that_others_disturbed_says_so_first_and_counts_the_runs() -> None:
    info = info_of([disturbed(one, runs=9) for one in realistic_results()])
    assert info.headline.sentence.startswith("Uncertain, 173 of 344 runs disturbed: ")
    assert info.headline.tone is Tone.DOUBTFUL
    assert info.headline.notes[0].startswith("Other programs kept the machine busy in ")
    assert "Do not trust these figures" in info.headline.notes[0]
    runs = [run for one in realistic_results() for run in one.runs]
    assert not facts_of(info)["Disturbed runs"].startswith("None")
    assert f" of {len(runs):,} runs" in facts_of(info)["Disturbed runs"]


def because(result: TrialResult, reasons: list[str]) -> TrialResult:
    """`result` with its first runs disturbed by `reasons`."""
    runs = [
        replace(run, disturbed=reason is not None, disturbance=reason)
        for run, reason in zip(result.runs, [*reasons, *[None] * len(result.runs)], strict=False)
    ]
    return replace(result, runs=tuple(runs))


def test_a_candidate_that_was_ranked_after_all_is_not_counted_as_stopped() -> None:
    stopped, left_out = (ended(one, TrialStatus.STOPPED, "too slow") for one in (WINNER, candidate("static")))
    info = info_of([baseline(), stopped, measured(WINNER, role=Role.CONFIRM, speed=1.5), left_out])
    assert ", 2 candidates ranked, 1 stopped early." in info.counts.sentence
    assert "The 1 stopped early is not included." in info.headline.confidence


def test_the_most_frequent_disturbance_is_named_whatever_its_figures() -> None:
    reasons = ["thermal throttling", *(f"other programs used 1.{n} of 2 CPUs; thermal throttling" for n in range(5))]
    reasons += [f"other programs used 0.{n} of 2 CPUs" for n in range(5, 9)]
    info = info_of([because(measured(BASELINE, role=Role.BASELINE), reasons)])
    assert info.headline.notes[0] == (
        "10 of 18 runs were disturbed (most often: other programs used 1.0 of 2 CPUs). Do not trust "
        "these figures. To measure again when the machine is quiet, repeat the kvray tune command with --resume "
        "20261124-2130-ab12 --retry disturbed --wait-quiet."
    )
    assert facts_of(info)["Disturbed runs"].startswith(
        "10 of 18 runs, most often because of: other programs used 1.0 of 2 CPUs."
    )


def test_a_calm_sweep_has_no_such_note(realistic: ReportInfo) -> None:
    assert not [note for note in realistic.headline.notes if "Other programs" in note]
    assert facts_of(realistic)["Disturbed runs"].startswith("None of ")


def test_a_baseline_measured_alone_because_the_search_had_to_end_did_not_beat_others() -> None:
    skipped = ended(candidate("static"), TrialStatus.SKIPPED, "the budget of 9 s left no time for another launch")
    sentence = info_of([baseline(), skipped]).headline.sentence
    assert sentence == "dynamic/sdpa/float32, the baseline, is the only candidate measured for chat-agent."


def test_what_is_to_be_known_of_the_model_stands_in_the_headline_whatever_was_measured() -> None:
    for results in (realistic_results(), unsuccessful_results()):
        assert "Its weights are packed." in info_of(results, model_notes=("Its weights are packed.",)).headline.notes


def test_what_came_of_running_the_winners_code_is_a_fact_and_a_note_where_it_is_bad() -> None:
    results = [baseline(), measured(WINNER, speed=1.9)]

    def told(outcome: CodeOutcome, *, winner: Candidate = WINNER) -> tuple[bool, str]:
        text = "The winner's code was looked at."
        check = CodeCheck(candidate_id=winner.candidate_id, fingerprint_id=None, outcome=outcome, text=text)
        info = info_of(results, code_check=check)
        return text in info.headline.notes, next(fact.text for fact in info.method if fact.name == "Winner's code")

    assert told(CodeOutcome.CHECKED) == (False, "The winner's code was looked at.")
    assert told(CodeOutcome.NOT_RUN) == (False, "The winner's code was looked at.")
    assert told(CodeOutcome.DIFFERS) == told(CodeOutcome.FAILED) == (True, "The winner's code was looked at.")
    assert told(CodeOutcome.FAILED, winner=candidate("static")) == (False, "It was not run to check it.")


def test_what_the_models_own_settings_cost_is_told_where_it_is_much() -> None:
    def told(share: float | None) -> list[str]:
        record = baseline().record.with_(processors="no_repeat_ngram_size + suppress_tokens", processor_share=share)
        notes = info_of([TrialResult(record=record, runs=baseline().runs), measured(WINNER)]).headline.notes
        return [note for note in notes if "generation_config.json" in note]

    assert told(0.049) == told(None) == []
    assert told(0.12) == [
        "The model's generation_config.json sets no_repeat_ngram_size and suppress_tokens: that takes up to 12 % of "
        "the time of every token, in a plain generate() as in every candidate."
    ]


def test_green_is_for_a_gain_that_was_measured_undisturbed_and_completely(realistic: ReportInfo) -> None:
    assert realistic.headline.tone is Tone.GOOD
    assert info_of([baseline(), measured(WINNER, speed=0.5)]).headline.tone is Tone.NEUTRAL
    assert info_of([measured(WINNER)]).headline.tone is Tone.NEUTRAL
    assert info_of([]).headline.tone is Tone.FAILED


def test_one_line_says_how_much_was_disturbed_and_how_to_measure_it_again() -> None:
    base, other = measured(BASELINE, role=Role.BASELINE), measured(WINNER)
    reasons = ["the CPU quota stopped a thread for 48 % of the run"]
    found = disturbances([because(base, reasons * len(base.runs)), other])
    manifest = plain_manifest()
    assert found.warning(manifest) == (
        f"{len(base.runs)} of {2 * len(base.runs)} runs were disturbed (most often: {reasons[0]}), and figures of 1 "
        "candidate rest on disturbed runs alone. To measure again when the machine is quiet, repeat the kvray tune "
        f"command with --resume {manifest.run_id} --retry disturbed --wait-quiet."
    )
    assert disturbances([because(base, reasons), other]).warning(manifest) is None, "every cell has better runs"


def test_runs_that_undisturbed_ones_have_replaced_are_counted_like_those_in_the_records() -> None:
    first, again = measured(BASELINE, role=Role.BASELINE), measured(BASELINE, role=Role.CONFIRM, confirm_round=1)
    results = [because(first, ["thermal throttling"] * len(first.runs)), again]
    found = disturbances(results)
    assert found.runs == sum(len(one.runs) for one in results)
    assert found.disturbed == len(first.runs)
    assert (found.decides, found.warning(plain_manifest())) == (False, None)


def test_where_nothing_keeps_the_limits_the_verdict_says_that_it_was_disturbed() -> None:
    base = measured(BASELINE, role=Role.BASELINE)
    profile = PROFILE.model_copy(update={"limits": Limits(max_ttft_ms=1.0)})
    info = info_of([because(base, ["thermal throttling"] * len(base.runs))], profile=profile)
    assert info.headline.sentence.startswith(f"Uncertain, {len(base.runs)} of {len(base.runs)} runs disturbed: No cand")
    assert "--retry disturbed" in info.headline.notes[0]


def test_a_profile_with_other_lengths_says_what_was_changed() -> None:
    profile = override_profile(PROFILE, context_lengths=(512,), output_lengths=(32,))
    results = [
        measured(one, profile=profile, role=role) for one, role in ((BASELINE, Role.BASELINE), (WINNER, Role.SEARCH))
    ]
    info = info_of(results, profile=profile)
    assert info.subtitle.startswith("chat-agent with other lengths or batch sizes on ")
    assert ", changed" not in f"{info.subtitle}{info.headline.sentence}"
