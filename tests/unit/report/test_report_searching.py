"""What a report says of the search: strategy, bounds, launches, confirming, forecast, and what was not launched."""

from __future__ import annotations

import re
from typing import Any

import pytest
from report_sweeps import BASELINE, WINNER, candidate, ended, info_of, measured

from kvray.analysis.evidence import confirm_trial_id
from kvray.candidate import Candidate
from kvray.record import Role, TrialResult, TrialStatus
from kvray.report.html import render_html
from kvray.report.info import ReportInfo
from kvray.report.markdown import render_markdown
from kvray.report.searching import confirming_text, strategy_text

UNBOUND: dict[str, Any] = {"max_trials": None, "budget_s": None}


def skipped(what: Candidate, *, chance: float, low: float = 0.6, high: float = 1.1) -> TrialResult:
    return ended(
        what,
        TrialStatus.SKIPPED,
        "predicted",
        expected_ttft_ms=612.3,
        expected_decode_tok_s=31.4,
        expected_score_low=low,
        expected_score_high=high,
        win_chance=chance,
    )


def searched(**values: Any) -> list[TrialResult]:
    return [measured(BASELINE, role=Role.BASELINE, **values), measured(WINNER, speed=1.9, **values)]


def fact(info: ReportInfo, name: str) -> str:
    return {one.name: one.text for one in info.method}.get(name, "")


def test_the_search_is_told_with_its_bounds_and_how_many_it_launched() -> None:
    others = [skipped(candidate("static", size), chance=0.001) for size in ("eager", "sdpa")]
    text = fact(info_of([*searched(), *others], search="grid", max_trials=2, budget_s=1200.0), "Search")
    assert text == (
        "grid: every candidate is launched and measured completely; at most 2 launches; at most 20 min, confirming "
        "included. Launched: 2 of 4 candidates."
    )


def test_a_small_space_is_said_to_be_launched_as_a_whole() -> None:
    assert strategy_text("model", 12, **UNBOUND).startswith("model: up to 12 candidates are all launched")
    assert "picks the next candidate" in strategy_text("model", 13, **UNBOUND)


def test_a_sweep_older_than_the_search_says_nothing_of_it() -> None:
    info = info_of(searched(), search=None)
    assert fact(info, "Search") == ""
    assert "Only the baseline" not in fact(info, "Rungs")


def test_rounds_and_processes_of_the_confirm_phase_are_counted() -> None:
    again = [
        ended(what, TrialStatus.OK, "", role=Role.CONFIRM, trial_id=confirm_trial_id(number, what.candidate_id))
        for number in (1, 2)
        for what in (WINNER, BASELINE)
    ]
    results = [*searched(), *again]
    info = info_of(results, search="model", confirm_rounds=4)
    assert fact(info, "Confirming").startswith("4 confirming processes in 2 rounds of at most 4: the winner, its")
    assert info.counts.sentence.startswith("6 trials launched, 4 of them to confirm, 2 candidates ranked")


def test_where_repeats_are_processes_the_rungs_say_so() -> None:
    assert "Only the baseline runs rung 2" in fact(info_of(searched(), search="model", confirm_rounds=1), "Rungs")
    assert "Only the baseline" not in fact(info_of(searched(), search="model", confirm_rounds=0), "Rungs")
    assert confirming_text(0) == "none."


def test_forecasts_are_held_against_what_was_measured() -> None:
    told = {"ttft_ms": 200.0, "decode_tok_s": 40.0, "forecast_ttft_ms": 100.0, "forecast_decode_tok_s": 44.0}
    info = info_of(searched(**told, forecast_peak_mib=990.0, roofline_share=0.61))
    assert fact(info, "Forecast").endswith(
        "Predicted divided by measured, median of 2 candidates: first token 0.50×, tok/s 1.10× and peak memory 1.10×. "
        "The winner decodes at 61 % of what copy bandwidth allows."
    )
    assert fact(info_of(searched()), "Forecast") == ""


def test_what_was_not_launched_is_a_table_with_the_likeliest_first() -> None:
    unlikely, likely = candidate("static", "eager"), candidate("static", "sdpa_math")
    info = info_of([*searched(), skipped(unlikely, chance=0.0004), skipped(likely, chance=0.0137)])
    assert [one.label for one in info.skipped] == [likely.label, unlikely.label]
    assert info.groups == ()
    page = render_markdown(info)
    assert f"| `{likely.label}` | 612 | 31.4 | – | 0.60× to 1.10× | 1 % |" in page
    assert page.index("| 1 % |") < page.index("| under 1 % |")
    table = render_html(info).partition('id="skipped"')[2].partition("</table>")[0]
    assert table.count("<tr>") == 3
    assert ">0.60× to 1.10×</td>" in table


def test_skipped_candidates_of_which_nothing_is_expected_are_listed_with_the_reason() -> None:
    info = info_of([*searched(), ended(candidate("static"), TrialStatus.SKIPPED, "the search ended before its turn")])
    assert info.skipped == ()
    assert [(group.title, group.count) for group in info.groups] == [("Not launched", 1)]


@pytest.mark.parametrize(
    ("bound", "larger"),
    [
        ({"max_trials": 2}, "--max-trials"),
        ({"budget_s": 60.0}, "--budget"),
        ({"max_trials": 2, "budget_s": 60.0}, "--budget or --max-trials"),
    ],
)
def test_a_search_that_was_cut_short_names_who_may_be_better(bound: dict[str, Any], larger: str) -> None:
    results = [
        *searched(),
        skipped(candidate("static"), chance=0.074),
        skipped(candidate("static", "eager"), chance=0.03),
    ]
    notes = info_of(results, search="model", **bound).headline.notes
    assert notes[-1] == (
        "The search ended early. static/sdpa/float32 was not launched; the chance that it is more than 2 % better than "
        f"the best measured one is 7 %. A larger {larger} would find out."
    )
    assert not any("ended early" in note for note in info_of(results, search="model").headline.notes)


def test_a_bounded_search_that_came_to_its_end_leaves_no_question() -> None:
    results = [*searched(), skipped(candidate("static"), chance=0.004)]
    assert not any("ended early" in note for note in info_of(results, search="model", max_trials=9).headline.notes)


def test_confidence_names_those_that_one_process_measured_where_others_had_more() -> None:
    again = [measured(WINNER, speed=1.9, role=Role.CONFIRM, process=number) for number in (1, 2)]
    sentence = info_of([*searched(), *again]).headline.confidence
    assert "dynamic/sdpa/float32 ran in one process only, so how much its processes differ is assumed" in sentence
    assert "Each candidate ran in one process" not in sentence
    assert "Each candidate ran in one process" in info_of(searched()).headline.confidence


def test_confidence_leaves_out_what_was_not_launched() -> None:
    results = [*searched(), ended(candidate("static"), TrialStatus.STOPPED, "a", rung=0)]
    results += [skipped(candidate("static", kernel), chance=0.001) for kernel in ("eager", "sdpa_math")]
    assert info_of(results).headline.confidence.endswith("The 1 stopped early and 2 not launched are not included.")


def test_speeds_are_told_to_be_those_of_the_confirming_rounds_and_what_was_in_none_is_marked() -> None:
    again = [
        TrialResult(
            record=one.record.with_(trial_id=confirm_trial_id(number, one.record.candidate_id)),
            runs=one.runs,
        )
        for number in (1, 2)
        for one in (
            measured(WINNER, speed=1.9, role=Role.CONFIRM, process=number),
            measured(BASELINE, role=Role.CONFIRM, process=number),
        )
    ]
    unpaired = measured(candidate("static"), speed=1.2)
    told, untold = info_of([*searched(), *again, unpaired]), info_of([*searched(), unpaired])
    assert [row.is_unpaired for row in told.rows] == [False, True, False]
    for page in (render_markdown, render_html):
        assert "Speeds come from the confirming rounds" in page(told)
        assert "marks candidates that were in none" in page(told)
        assert re.search(r"\+\d\d %\\?\*", page(told))
        assert "confirming rounds, in which" not in page(untold)
