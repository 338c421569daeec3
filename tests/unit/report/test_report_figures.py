from __future__ import annotations

import plotly.graph_objects as go
import pytest
from report_sweeps import BASELINE, WINNER, candidate, info_of, measured

from kvray.record import Role, TrialResult
from kvray.report.figures import BASELINE as BASELINE_COLOUR
from kvray.report.figures import MAX_BARS, bar_figures, scatter_figure
from kvray.report.figures import WINNER as WINNER_COLOUR
from kvray.report.info import ReportInfo


def test_plotly_accepts_every_figure(realistic: ReportInfo) -> None:
    scatter = scatter_figure(realistic)
    assert scatter is not None
    for figure in (*bar_figures(realistic), scatter):
        go.Figure(figure.plot)  # raises on an unknown name or a bad value


def test_bars_follow_the_ranking_and_mark_winner_and_baseline(realistic: ReportInfo) -> None:
    ttft = bar_figures(realistic)[0].plot["data"][0]
    colours = ttft["marker"]["color"]
    assert list(ttft["x"]) == [row.ttft_ms for row in realistic.rows]
    assert colours[0] == WINNER_COLOUR
    assert [row.is_baseline for row in realistic.rows].index(True) == colours.index(BASELINE_COLOUR)


def test_many_candidates_leave_the_baseline_among_the_bars() -> None:
    others = [
        measured(candidate("static", cache_params=(("size", size),)), speed=2 + size / 100, repeats=1)
        for size in range(MAX_BARS + 5)
    ]
    info = info_of([measured(BASELINE, role=Role.BASELINE, repeats=1), *others])
    labels = [note["text"] for note in bar_figures(info)[0].plot["layout"]["annotations"]]
    assert len(labels) == MAX_BARS + 1
    assert labels[-1] == f"{MAX_BARS + 6}. dynamic/sdpa/float32"


def test_unknown_memory_draws_no_memory_bars() -> None:
    info = info_of([measured(BASELINE, role=Role.BASELINE, peak_mib=None), measured(WINNER, peak_mib=None)])
    assert [figure.name for figure in bar_figures(info)] == ["ttft", "throughput"]
    assert scatter_figure(info) is not None


@pytest.mark.parametrize("results", [[], [measured(BASELINE, role=Role.BASELINE)]], ids=["none", "one"])
def test_with_fewer_than_two_candidates_there_is_nothing_to_draw(results: list[TrialResult]) -> None:
    info = info_of(results)
    assert bar_figures(info) == ()
    assert scatter_figure(info) is None


@pytest.mark.parametrize(("slow", "kind"), [(0.9, None), (0.05, "log")])
def test_a_very_slow_candidate_makes_the_axes_logarithmic(slow: float, kind: str | None) -> None:
    scatter = scatter_figure(info_of([measured(BASELINE, role=Role.BASELINE), measured(WINNER, speed=slow)]))
    assert scatter is not None
    assert scatter.plot["layout"]["xaxis"].get("type") == kind


def test_labels_cannot_carry_markup_into_a_chart() -> None:
    evil = candidate("static", cache_params=(("x", "<b>&"),))
    figures = bar_figures(info_of([measured(evil, speed=1.5), measured(WINNER)]))
    assert figures[0].plot["layout"]["annotations"][0]["text"] == "1. static(x=&lt;b&gt;&amp;)/sdpa/float32"


@pytest.mark.parametrize(
    ("peak_mib", "told", "sizes"),
    [(1010.0, "; all need nearly the same memory", 1), (1200.0, "; a larger one needs more memory", 2)],
)
def test_points_differ_in_size_only_where_memory_differs_by_more_than_a_trifle(
    peak_mib: float, told: str, sizes: int
) -> None:
    results = [measured(BASELINE, role=Role.BASELINE, peak_mib=1000.0), measured(WINNER, speed=1.9, peak_mib=peak_mib)]
    scatter = scatter_figure(info_of(results))
    assert scatter is not None
    drawn = {size for one in scatter.plot["data"] for size in one.get("marker", {}).get("size", ())}
    assert len(drawn) == sizes
    assert told in scatter.caption


def test_a_logarithmic_axis_is_labelled_with_whole_numbers() -> None:
    results = [measured(BASELINE, role=Role.BASELINE), measured(WINNER, speed=0.05)]
    info = info_of(results)
    scatter = scatter_figure(info)
    assert scatter is not None
    for name, values in (
        ("xaxis", [row.ttft_ms for row in info.rows]),
        ("yaxis", [row.decode_tok_s for row in info.rows]),
    ):
        axis = scatter.plot["layout"][name]
        assert axis["tickvals"][0] <= min(values)
        assert axis["tickvals"][-1] >= max(values)
        assert len([tick for tick in axis["tickvals"] if min(values) <= tick <= max(values)]) >= 2
        assert [float(text.replace(",", "")) for text in axis["ticktext"]] == pytest.approx(axis["tickvals"])


@pytest.mark.parametrize(("prefill", "points"), [(1.0, 1), (0.3, 2)])
def test_the_dotted_line_is_named_only_where_it_is_drawn(prefill: float, points: int) -> None:
    results = [measured(BASELINE, role=Role.BASELINE), measured(WINNER, speed=2.0, prefill=prefill * 2)]
    info = info_of(results)
    assert len(info.front) == points
    scatter = scatter_figure(info)
    assert scatter is not None
    assert any(one.get("mode") == "lines" for one in scatter.plot["data"]) is (points > 1)
    assert ("dotted line" in scatter.caption) is (points > 1)
