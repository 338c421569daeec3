from __future__ import annotations

import io

import pytest
from report_sweeps import BASELINE, WINNER, candidate, ended, info_of, limits_missed, measured
from rich.console import Console, RenderableType

from kvray.record import Role, TrialStatus
from kvray.report import terminal
from kvray.report.info import ReportInfo
from kvray.report.terminal import render_terminal


def printed(renderable: RenderableType, *, width: int = 80, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_eighty_columns_hold_the_ranking_and_every_label(realistic: ReportInfo) -> None:
    lines = printed(render_terminal(realistic)).splitlines()
    assert max(map(len, lines)) <= 80
    for row in realistic.rows:
        start = f"{row.rank:>2} {row.label}"
        assert any(line.startswith(start[:32]) for line in lines), start


def test_a_pipe_gets_plain_text(realistic: ReportInfo) -> None:
    assert "\x1b" not in printed(render_terminal(realistic))
    assert "\x1b" in printed(render_terminal(realistic), terminal=True)


def test_failures_are_summed_up_with_their_reasons(realistic: ReportInfo) -> None:
    text = " ".join(printed(render_terminal(realistic)).split())
    assert "Out of memory (1) static/eager/float32: ran out of memory while measuring: Needed 8.0 GiB" in text
    assert "8 rejected before launch, 1 not launched by the search." in text


def test_many_failures_are_cut_short() -> None:
    failures = [
        ended(candidate("static", cache_params=(("size", size),)), TrialStatus.ERROR, f"reason {size}")
        for size in range(5)
    ]
    text = printed(render_terminal(info_of(failures)))
    assert "reason 2" in text
    assert "reason 3" not in text
    assert "and 2 more reasons" in text


def test_of_many_candidates_the_best_and_the_baseline_are_shown(
    realistic: ReportInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "MAX_RANKED", 1)
    shown = [row for row in realistic.rows if row.rank == 1 or row.is_baseline]
    text = printed(render_terminal(realistic))
    assert f"and {len(realistic.rows) - len(shown)} more, which ranking.parquet and the report have" in text
    lines = [line.strip() for line in text.splitlines()]
    starts = {row.rank: f"{row.rank} {row.label[:12]}" for row in realistic.rows}
    found = [rank for rank, start in starts.items() if any(line.startswith(start) for line in lines)]
    assert found == [row.rank for row in shown]


@pytest.mark.parametrize("message", ["[bold]not markup[/bold]", "\x1b[31mred"])
def test_messages_are_never_markup(message: str) -> None:
    text = printed(render_terminal(info_of([ended(WINNER, TrialStatus.ERROR, message)])), terminal=True)
    assert "\x1b[31mred" not in text
    assert message.removeprefix("\x1b[31m") in text


def test_without_a_baseline_there_are_no_gain_columns() -> None:
    with_baseline = printed(render_terminal(info_of([measured(BASELINE, role=Role.BASELINE), measured(WINNER)])))
    without = printed(render_terminal(info_of([measured(WINNER)])))
    assert "speed" in with_baseline
    assert "speed" not in without


def test_every_ranked_candidate_says_how_many_tokens_make_up_for_a_slower_start() -> None:
    slow_start = measured(WINNER, speed=1.5, cold_s=30.0)
    info = info_of(
        [measured(BASELINE, role=Role.BASELINE, cold_s=1.0), slow_start, measured(candidate("static"), speed=0.5)]
    )
    table = printed(render_terminal(info)).partition("───")[2].splitlines()
    ends = {row.label: next(line for line in table if f" {row.label} " in line).split()[-1] for row in info.rows}
    assert ends == {WINNER.label: info.rows[0].break_even, BASELINE.label: "–", "static/sdpa/float32": "never"}
    assert info.rows[0].break_even.replace(",", "").isdigit()


def test_what_misses_a_limit_follows_the_verdict_nearest_first() -> None:
    missed = limits_missed([measured(BASELINE, role=Role.BASELINE), measured(WINNER, speed=1.9)])
    text = " ".join(printed(render_terminal(missed)).split())
    assert "No candidate keeps the limits. dynamic/sdpa_flash/bfloat16 comes nearest: TTFT 1,446 ms" in text
    table = text.partition("Measured, misses a limit")[2]
    assert table.index("dynamic/sdpa_flash") < table.index("baseline") < table.index("trials launched")
    assert "✗" in table
