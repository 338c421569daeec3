"""The same gain wherever a reader or a program meets it: headline, tables, plan, snippet, JSON, ranking file."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from report_sweeps import BASELINE, WINNER, candidate, manifest, measured
from rich.console import Console

from kvray.analysis import analyse
from kvray.analysis.choice import Choice, Reason
from kvray.candidate import Candidate
from kvray.cli.output import summary
from kvray.plan.builder import PlanBuilder
from kvray.ratios import speed_sign, speed_text, tok_s_text
from kvray.record import Role, TrialResult
from kvray.report import formats
from kvray.report.html import render_html
from kvray.report.info import report_info
from kvray.report.markdown import render_markdown
from kvray.report.ranking_file import ranking_file_rows
from kvray.report.rows import APART_TEXT
from kvray.report.terminal import render_terminal
from kvray.store.paths import ResultsPaths
from kvray.tuning.result import TuneResult, info_of

UNPAIRED = candidate("static")


@pytest.fixture(scope="module")
def result() -> TuneResult:
    """The winner's search trial was luckier than its confirming ones; another candidate has no confirming ones."""
    results = (
        measured(BASELINE, role=Role.BASELINE),
        measured(WINNER, speed=2.6),
        measured(UNPAIRED, speed=1.3),
        *(
            measured(what, speed=speed, role=Role.CONFIRM, process=number)
            for number in (1, 2, 3)
            for what, speed in ((BASELINE, 1.0), (WINNER, 1.9))
        ),
    )
    about = manifest()
    return TuneResult(
        manifest=about,
        results=results,
        analysis=analyse(results, about.profile),
        records=(),
        paths=ResultsPaths(root=Path("results"), run_id=about.run_id),
    )


def test_every_place_has_the_gain_of_the_pairs(result: TuneResult) -> None:
    gain = result.analysis.ranking.winner.gain
    assert gain is not None
    assert gain.pairs == 3
    assert 1 + gain.ttft == pytest.approx(1.9, rel=0.03), "the lucky search trial is no part of it"

    info, plan = info_of(result), PlanBuilder(result).build()
    assert plan.winner.gain is not None
    assert (plan.winner.gain.ttft, plan.winner.gain.throughput) == (gain.ttft, gain.throughput)
    told = summary(result)["winner"]["gain"]
    row = next(one for one in ranking_file_rows(result.manifest, result.results, result.analysis) if one.rank == 1)
    assert row.ttft_speedup == pytest.approx(1 + gain.ttft)
    assert row.decode_speedup == pytest.approx(1 + gain.throughput)
    assert told == {name: getattr(row, name) for name in told}, "by the names of the columns, with their meaning"
    assert {"ttft_speedup", "decode_speedup_low", "peak_ratio", "pairs"} <= told.keys()

    faster, more = speed_text(1 + gain.ttft), tok_s_text(1 + gain.throughput)
    assert f"first token {faster} and {more} compared with" in info.headline.sentence
    assert [stat.change for stat in info.headline.stats][:2] == [faster, more]
    assert f"first token {faster}" in PlanBuilder(result).generate_code_snippet()


def test_every_table_has_it_and_marks_what_was_in_no_pair(result: TuneResult) -> None:
    info = info_of(result)
    gains = {row.label: row.gain for row in info.rows}
    winner, unpaired = gains[WINNER.label], gains[UNPAIRED.label]
    assert winner is not None
    assert unpaired is not None
    console = Console(file=io.StringIO(), width=100)
    console.print(render_terminal(info))
    assert isinstance(console.file, io.StringIO)
    for page in (console.file.getvalue(), render_markdown(info).replace("\\", ""), render_html(info)):
        assert speed_sign(1 + winner.ttft) in page
        assert f"{speed_sign(1 + winner.ttft)}*" not in page
        assert f"{speed_sign(1 + unpaired.ttft)}*" in page


def test_without_confirming_rounds_nothing_is_marked(result: TuneResult) -> None:
    searched = tuple(one for one in result.results if one.record.role is not Role.CONFIRM)
    rows = info_of(
        TuneResult(
            manifest=result.manifest,
            results=searched,
            analysis=analyse(searched, result.manifest.profile),
            records=(),
            paths=result.paths,
        )
    ).rows
    assert not any(row.is_unpaired for row in rows)


def test_figures_that_contradict_the_gain_are_explained_where_they_stand() -> None:
    """The machine was slower while the winner was searched; side by side it is the faster one."""
    results = (
        measured(BASELINE, role=Role.BASELINE),
        measured(WINNER, speed=0.8),
        *(
            measured(what, speed=speed, role=Role.CONFIRM, process=1)
            for what, speed in ((BASELINE, 1.0), (WINNER, 1.05))
        ),
    )
    about = manifest()
    analysis = analyse(results, about.profile)
    info = report_info(about, results, replace(analysis, ranking=analysis.ranking.led_by(WINNER.candidate_id)))
    winner = next(row for row in info.rows if row.label == WINNER.label)
    baseline = next(row for row in info.rows if row.is_baseline)
    assert winner.ttft_ms > baseline.ttft_ms
    assert winner.ttft_gain is not None
    assert winner.ttft_gain > 0
    console = Console(file=io.StringIO(), width=160)
    console.print(render_terminal(info))
    assert isinstance(console.file, io.StringIO)
    sign = f"{speed_sign(1 + winner.ttft_gain)}†"
    terminal, markdown, html = console.file.getvalue(), render_markdown(info), render_html(info)
    assert all(sign in page.replace("\\", "") for page in (terminal, markdown, html))
    assert f"† {APART_TEXT}" in terminal
    assert all("† marks speeds that differ from these by more than 2 %" in page for page in (markdown, html))
    assert "both figures are of all processes, the change is of the confirming rounds" in html
    score = f"{formats.score(baseline.score)}†" if baseline.score_is_apart else f"{formats.score(winner.score)}†"
    assert all(score in page.replace("\\", "") for page in (terminal, markdown, html)), "the score rests on the times"
    assert "score, TTFT, tok/s: of all processes; speed: of the confirming rounds alone" in terminal
    assert all("they may differ from the ranking's speeds" in page.replace("&#39;", "'") for page in (markdown, html))
    assert all("speed, confirmed" in page for page in (markdown, html))


def test_figures_that_agree_with_the_gain_need_no_word() -> None:
    results = tuple(
        measured(what, speed=speed, role=role, process=process)
        for role, process in ((None, 0), (Role.CONFIRM, 1), (Role.CONFIRM, 2))
        for what, speed in ((BASELINE, 1.0), (WINNER, 1.9))
        for role in (role or (Role.BASELINE if what is BASELINE else Role.SEARCH),)
    )
    about = manifest()
    info = report_info(about, results, analyse(results, about.profile))
    assert not any(row.ttft_mark or row.throughput_mark for row in info.rows)
    assert "†" not in render_html(info)


def lucky(what: Candidate, *, searched: float, paired: float) -> list[TrialResult]:
    """Fast while it was searched, and otherwise in the confirming rounds."""
    first = Role.BASELINE if what == BASELINE else Role.SEARCH
    return [
        measured(what, speed=searched, role=first),
        *(measured(what, speed=paired, role=Role.CONFIRM, process=number, repeats=1) for number in (1, 2)),
    ]


def test_nothing_is_called_best_whose_printed_gains_are_all_worse() -> None:
    """Its search trial ran on a quieter machine; beside the baseline it is the slower one in all."""
    results = (*lucky(BASELINE, searched=1.0, paired=1.0), *lucky(WINNER, searched=1.3, paired=0.97))
    about = manifest()
    analysis = analyse(results, about.profile)
    assert analysis.confidence is not None
    choice = Choice(candidate_id=BASELINE.candidate_id, over=WINNER.candidate_id, reason=Reason.NO_GAIN)
    info = report_info(
        about,
        results,
        replace(
            analysis,
            ranking=analysis.ranking.led_by(BASELINE.candidate_id),
            confidence=replace(analysis.confidence, choice=choice),
        ),
    )
    rival = next(row for row in info.rows if row.label == WINNER.label)
    assert rival.score > info.rows[0].score
    assert rival.gain is not None
    assert not rival.gain.is_better_in_something
    (note,) = info.headline.notes
    assert "measured best" not in note
    assert note.startswith(
        f"{WINNER.label} has a higher score than the baseline, which counts all processes. But in the "
    )
    assert "nothing of it was better: " in note


def test_a_winner_below_the_highest_score_is_explained() -> None:
    results = (
        *lucky(BASELINE, searched=1.0, paired=1.0),
        *lucky(WINNER, searched=1.2, paired=1.5),
        *lucky(UNPAIRED, searched=2.4, paired=1.2),
    )
    about = manifest()
    analysis = analyse(results, about.profile)
    assert analysis.confidence is not None
    choice = Choice(candidate_id=WINNER.candidate_id, over=WINNER.candidate_id, reason=Reason.BEST)
    analysis = replace(
        analysis,
        ranking=analysis.ranking.led_by(WINNER.candidate_id),
        confidence=replace(analysis.confidence, choice=choice),
    )
    info = report_info(about, results, analysis)
    assert info.rows[0].score < max(row.score for row in info.rows)
    told = " ".join(info.headline.notes)
    assert f"{UNPAIRED.label} has the highest score, which counts all processes alike." in told
    assert f"{WINNER.label} comes first because it led in the resamplings" in told


def test_the_fastest_is_so_in_the_speeds_too() -> None:
    """By its times the winner is the fastest; in the confirming rounds another one gained more."""
    results = (
        *lucky(BASELINE, searched=1.0, paired=1.0),
        *lucky(WINNER, searched=4.0, paired=1.5),
        *lucky(UNPAIRED, searched=1.2, paired=1.7),
    )
    about = manifest()
    analysis = analyse(results, about.profile)
    info = report_info(about, results, replace(analysis, ranking=analysis.ranking.led_by(WINNER.candidate_id)))
    winner, rival = (next(row for row in info.rows if row.label == one.label) for one in (WINNER, UNPAIRED))
    assert winner.ttft_ms < rival.ttft_ms
    assert winner.ttft_gain is not None
    assert rival.ttft_gain is not None
    assert winner.ttft_gain < rival.ttft_gain
    assert "fastest" not in info.headline.sentence


@pytest.mark.parametrize(("load_s", "told"), [(0.2, "–"), (5.0, "never"), (None, "–")])
def test_a_faster_first_token_is_not_said_to_start_slower(load_s: float | None, told: str) -> None:
    """Break-even tells of loading and warming up, and of nothing where these are not known."""
    about = manifest()
    results = (
        measured(BASELINE, role=Role.BASELINE),
        measured(WINNER, speed=0.9, prefill=2.0, load_s=load_s),
    )
    info = report_info(about, results, analyse(results, about.profile))
    row = next(one for one in info.rows if not one.is_baseline)
    assert row.break_even == told
    pages = (render_markdown(info), render_html(info))
    assert not any("slower start" in page for page in pages)
    assert all("a longer load, compilation and warm-up" in page for page in pages)
