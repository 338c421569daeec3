"""`watch.html`: what it says is computed and tested here, then rendered."""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from watch_histories import VERSIONS, at, event, not_measured, observation, regression, with_events

from kvray.analysis.comparison import ComparedMetric
from kvray.check.watch.events import EventKind, ObservationRole, WatchState
from kvray.check.watch.observed import differences, levels
from kvray.check.watch.page import WatchPage, render_watch
from kvray.check.watch.page_charts import charts
from kvray.check.watch.page_info import MOST_ROWS, page_info
from kvray.report.formats import timestamp
from kvray.report.html import dated
from kvray.report.verdict import Tone
from kvray.store.skipped import SkippedTurn

CHROMIUM = shutil.which("chromium")
EVIL = "</script><script>alert(1)</script>"


def test_one_observation_is_a_whole_page() -> None:
    info = page_info([observation()])
    assert info.sentence == "As good as before: nothing has become worse since the watch began (2026-10-01 00:00 UTC)."
    assert info.tone is Tone.GOOD
    assert info.counts == "1 observation; the last on 2026-10-01 00:00 UTC."
    assert [(now.title, now.value, now.level) for now in info.metrics] == [
        ("time to first token", 120.0, 120.0),
        ("decode throughput", 41.0, 41.0),
        ("peak memory", 812.0, 812.0),
    ]
    assert info.events == ()


def test_the_verdict_says_what_became_worse_by_how_much_since_when_and_what_changed_there() -> None:
    history = [one for one in regression(40, 20) if one.processes]
    info = page_info(history)
    assert info.sentence == ("Worse than before: time to first token +12 % (120 → 134 ms) since 2026-10-06 00:00 UTC.")
    assert info.tone is Tone.DOUBTFUL
    changed, machine = info.notes
    assert changed == (
        "What changed between the last observation before it (2026-10-05 18:00 UTC) and the first after it "
        "(2026-10-06 00:00 UTC): transformers 5.22.0 → 5.23.0."
    )
    assert re.fullmatch(
        r"The machine's own speed there, by the anchor: copying memory \S+ % and matrix multiplication \S+ %\.", machine
    )
    confirmed, suspected = info.events
    assert (confirmed.event.kind, suspected.event.kind) == (EventKind.CONFIRMED, EventKind.SUSPECTED)
    assert (confirmed.change, confirmed.figures) == ("+12 % (+10 % to +14 %)", "120 → 134 ms")
    assert confirmed.changed == "transformers 5.22.0 → 5.23.0"


def test_the_configuration_is_named_as_its_events_name_it() -> None:
    told = with_events(observation(0), [event(0, EventKind.OBSERVATION, change_point=None)])
    (named,) = [fact.text for fact in page_info([told]).facts if fact.name == "Configuration"]
    assert named == "SmolLM2-135M-Instruct, static/sdpa_flash, c1"


def test_where_nothing_recorded_changed_the_page_says_so() -> None:
    history = [observation(0), with_events(observation(1), [event(1, EventKind.CONFIRMED)], ttft_state="confirmed")]
    info = page_info(history)
    assert info.notes[0].startswith("Nothing that kvray records has changed between the last observation before it")
    assert info.events[0].changed == "nothing that kvray records"


def test_after_a_recovery_the_verdict_is_good_and_names_it() -> None:
    info = page_info(regression(60, 20, recovered_at=40))
    assert info.sentence == (
        "As good as before: nothing has become worse since the last recovery (2026-10-11 00:05 UTC)."
    )
    assert info.tone is Tone.GOOD
    assert info.notes == ()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"ttft_state": "suspected", "memory_state": "suspected"},
            "Perhaps worse: time to first token and peak memory. It is not confirmed yet.",
        ),
        ({"machine_state": "confirmed"}, "The machine itself has become slower."),
    ],
)
def test_what_is_not_sure_or_not_the_configurations_is_said_so(changes: dict[str, Any], sentence: str) -> None:
    info = page_info([observation(0), observation(1, **changes)])
    assert (info.sentence, info.tone) == (sentence, Tone.DOUBTFUL)


def test_a_slower_machine_is_told_with_its_moment() -> None:
    slower = event(1, EventKind.MACHINE, None, change=-0.2, before=11.0)
    history = [observation(0), with_events(observation(1), [slower], machine_state="confirmed")]
    info = page_info(history)
    assert info.sentence == "The machine itself has become slower since 2026-10-01 06:00 UTC."
    assert (info.events[0].title, info.events[0].figures) == ("the machine", "11.0 → 8.80")


def test_a_watch_that_measures_nothing_says_why() -> None:
    info = page_info([not_measured(0), not_measured(1)])
    assert (info.sentence, info.tone) == ("Nothing could be measured yet.", Tone.FAILED)
    assert info.notes == (
        "The last observation (2026-10-01 06:00 UTC) measured nothing: the engine needs 900 MiB more.",
    )
    assert charts([not_measured(0)]) == ()
    assert "plotly.js v" not in render_watch([not_measured(0)])


def test_turns_that_were_skipped_since_the_last_observation_are_told() -> None:
    history = [observation(0), observation(4)]
    skipped = [SkippedTurn(at=at(number), reason="Other programs keep 2.0 of 2 CPUs busy") for number in (1, 5, 6)]
    info = page_info(history, skipped)
    assert info.notes == (
        f"Not looked at since {timestamp(at(4))}: the last 2 turns were skipped because others used the machine, the "
        f"latest on {timestamp(at(6))} (Other programs keep 2.0 of 2 CPUs busy).",
    )
    assert info.counts.startswith("2 observations, 3 turns skipped; the last on ")
    assert page_info(history, skipped[:1]).notes == ()
    assert "the last turn was skipped" in page_info(history, skipped[:2]).notes[0]


def test_the_page_is_written_anew_when_a_turn_is_skipped(tmp_path: Path) -> None:
    skipped: list[SkippedTurn] = []
    page = WatchPage(tmp_path / "watch.html", lambda: [observation(0)], lambda: skipped)
    page.tell(event(0, EventKind.OBSERVATION, observation=observation(0)))
    assert "Not looked at since" not in (tmp_path / "watch.html").read_text(encoding="utf-8")
    skipped.append(SkippedTurn(at=at(1), reason="busy"))
    page.tell(event(1, EventKind.SKIPPED, None))
    assert "Not looked at since" in (tmp_path / "watch.html").read_text(encoding="utf-8")


def test_a_level_is_the_median_of_calm_observations_between_change_points() -> None:
    calm = [observation(number, ttft_ms=value) for number, value in enumerate((100.0, 102.0, 104.0))]
    wild = observation(3, ttft_ms=900.0, disturbed=True)
    used = observation(4, ttft_ms=102.0, load="others used 0.5 of 2 CPUs")
    step = with_events(observation(5, ttft_ms=150.0), [event(5, EventKind.CONFIRMED)])
    history = [*calm, wild, used, step, not_measured(6)]
    assert levels(ComparedMetric.TTFT, history) == [(at(0), at(4), 102.0), (at(5), at(5), 150.0)]
    assert [value for _, _, value in levels(ComparedMetric.DECODE, history)] == [41.0]


def test_levels_that_are_nobodys_alarm_are_shown_as_such() -> None:
    """An improvement, and a change that the machine explains, are new levels; an unconfirmed suspicion is not."""
    history = [observation(number) for number in range(6)]
    history[2] = with_events(observation(2, ttft_ms=110.0), [event(2, EventKind.OBSERVATION, change=-0.08)])
    history[4] = with_events(observation(4), [event(4, EventKind.OBSERVATION, change=0.03)])
    starts = json.dumps({"ttft": {"state": "ok", "starts": [history[2].observation_id], "reference": None}})
    history[5] = observation(5, standing=starts)
    assert [begin for begin, _, _ in levels(ComparedMetric.TTFT, history)] == [at(0), at(2)]
    (ttft, *_) = charts(history)
    assert [shape["x0"] for shape in ttft.plot["layout"]["shapes"]] == ["2026-10-01 12:00:00"]
    assert [(row.what, row.change) for row in page_info(history).events] == [
        ("note", "+3 % (+1 % to +5 %)"),
        ("note", "−8 % (−10 % to −6 %)"),
    ]


def test_a_machine_that_recovered_is_no_longer_slow() -> None:
    slower = event(1, EventKind.MACHINE, None, change=-0.2, before=11.0, state=WatchState.CONFIRMED)
    back = event(2, EventKind.MACHINE, None, change=0.25, before=8.8, state=WatchState.RECOVERED)
    history = [observation(0), with_events(observation(1), [slower]), with_events(observation(2), [back])]
    info = page_info(history)
    assert (info.tone, [row.badge for row in info.events]) == (Tone.GOOD, ["winner", "failure"])
    marks = charts(history)[0].plot["layout"]["shapes"]
    assert [mark["yref"] for mark in marks] == ["y2 domain"] * 2, "below the metric, at the anchor"


def test_rates_of_another_anchor_are_not_compared() -> None:
    history = [observation(0, anchor="another", copy_gb_s=99.0), observation(1), observation(2)]
    (ttft, *_) = charts(history)
    (copying,) = [trace for trace in ttft.plot["data"] if trace["name"] == "copying memory"]
    assert copying["y"] == [100.0, 100.0]
    moved = [history[0], with_events(observation(1), [event(1, EventKind.CONFIRMED)], ttft_state="confirmed")]
    assert not any("own speed" in note for note in page_info(moved).notes)


def test_what_differs_between_two_observations_is_named() -> None:
    after = observation(
        1,
        engine_versions={"torch": "2.12.0", "gguf": "0.10"},
        driver_version="580.1",
        kernels="sdpa_math",
        hardware="h2",
        host="node-8",
    )
    assert differences(observation(0), after) == (
        "gguf none → 0.10",
        "torch 2.11.0 → 2.12.0",
        "transformers 5.22.0 → none",
        "driver none → 580.1",
        "kernels sdpa_flash, sdpa_math, DynamicCache → sdpa_math",
        "host node-7 → node-8",
        "the machine's hardware",
    )
    assert differences(observation(0), observation(1)) == ()
    fewer = observation(1, anchor="CPU, 1 thread")
    assert differences(observation(0, anchor="CPU, 2 threads"), fewer) == ("threads: 2 → 1",)
    older = observation(0, anchor="CPU, 2 threads, NumPy 2.3.1", variables=None)
    newer = observation(1, anchor="CPU, 2 threads, NumPy 2.4.6", variables={"OMP_NUM_THREADS": "2"})
    assert differences(older, newer) == ("anchor: NumPy 2.3.1 → NumPy 2.4.6",)
    assert differences(newer, observation(2, anchor=newer.anchor, variables={})) == ("OMP_NUM_THREADS: 2 → not set",)


def test_charts_mark_disturbed_repeated_and_missing_observations_and_change_points() -> None:
    again = observation(4, role=ObservationRole.CONFIRM)
    history = [
        observation(0),
        observation(1, disturbed=True),
        observation(2, load="others used 1 CPU"),
        not_measured(3),
    ]
    history += [again, with_events(observation(5), [event(5, EventKind.CONFIRMED)])]
    ttft, _, memory = charts(history)
    traces = {trace["name"]: trace for trace in ttft.plot["data"]}
    counts = {
        name: len(traces[name]["x"]) for name in ("observation", "disturbed", "after a suspicion", "not measured")
    }
    assert counts == {"observation": 3, "disturbed": 1, "after a suspicion": 1, "not measured": 1}
    assert "900 MiB more" in traces["not measured"]["hovertext"][0]
    assert [shape["x0"] for shape in ttft.plot["layout"]["shapes"]] == ["2026-10-02 06:00:00"]
    assert ttft.plot["layout"]["annotations"][0]["text"] == "<b>+12 %</b>"
    assert {"copying memory", "matrix multiplication"} <= set(traces), "the anchor lies beside it"
    assert all("yaxis" not in trace for trace in memory.plot["data"]), "memory does not depend on the machine's speed"


def test_an_axis_shows_calm_values_whatever_a_disturbed_one_was() -> None:
    (ttft, *_) = charts([observation(0), observation(1), observation(2, ttft_ms=12_000.0, disturbed=True)])
    low, high = ttft.plot["layout"]["yaxis"]["range"]
    assert low < 120 < high < 140


def test_a_few_minutes_of_history_fill_the_chart() -> None:
    minutes = [replace(observation(), observed_at=at(0) + dt.timedelta(minutes=number)) for number in range(5)]
    for chart in charts(minutes):
        first, last = (dt.datetime.fromisoformat(end) for end in chart.plot["layout"]["xaxis"]["range"])
        assert last - first < dt.timedelta(minutes=5)


def test_only_the_newest_observations_are_in_the_table() -> None:
    info = page_info(regression(MOST_ROWS + 30, 20))
    assert (len(info.rows), info.left_out) == (MOST_ROWS, 30)
    assert info.rows[0].observation.observed_at > info.rows[1].observation.observed_at


def test_events_that_cannot_be_read_cost_nothing_else() -> None:
    readable = event(0, EventKind.CONFIRMED).to_dict()
    for text in ("{", "7", '["x", {"kind": 1}]', json.dumps([{**readable, "kind": "new"}, readable])):
        info = page_info([observation(0, events=text, ttft_state="unheard of")])
        assert len(info.events) == ('"new"' in text)


def test_a_page_of_a_year_is_rendered_and_what_comes_from_outside_stays_text() -> None:
    history = [
        *regression(1500, 900),
        not_measured(1501, EVIL),
        observation(1502, model_id=EVIL, kernels=EVIL, engine_versions={EVIL: EVIL}, load=EVIL),
    ]
    page = render_watch(history)
    assert EVIL not in page
    assert page.count("plotly.js v") == 1
    own = re.sub(r"<script(?! type).*?</script>", "", page, flags=re.DOTALL)
    assert len(own) < 2_500_000
    assert not re.search(r"""(?:src|href)\s*=|url\(|@import""", own)


def test_the_page_is_written_at_each_observation_and_a_full_disk_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("kvray").propagate = True
    history = [observation(0)]
    page = WatchPage(tmp_path / "watch.html", lambda: history)
    told = event(0, EventKind.OBSERVATION, observation=history[0])
    page.tell(told)
    assert "1 observation;" in (tmp_path / "watch.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    page.tell(event(0, EventKind.SKIPPED))
    full = WatchPage(Path("/dev/full/watch.html"), lambda: history)
    full.tell(told)
    full.tell(event(1, EventKind.OBSERVATION, observation=observation(1)))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert lines[0].startswith("Cannot write /dev/full/watch.html: ")


@pytest.mark.spawns
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
def test_a_browser_draws_every_chart_under_the_policy_without_an_error(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    file = tmp_path / "watch.html"
    file.write_text(render_watch([*regression(60, 30), observation(60, model_id=EVIL, load=EVIL)]), encoding="utf-8")
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    switches += " disable-component-update disable-sync virtual-time-budget=5000 enable-logging=stderr dump-dom"
    done = subprocess.run(
        [CHROMIUM, *(f"--{one}" for one in switches.split()), f"--user-data-dir={tmp_path / 'profile'}", str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
    for metric in ComparedMetric:
        assert 'class="main-svg"' in done.stdout.split(f'id="plot-watch-{metric.value}"')[1][:3000], metric
    assert VERSIONS["torch"] in done.stdout
    assert "<script>alert" not in done.stdout


def test_no_time_breaks_within_its_date() -> None:
    assert dated("since 2026-10-06 00:00 UTC: a/b") == (
        'since <span class="when">2026-10-06 00:<wbr>00 UTC</span>: a/<wbr>b'
    )
    assert dated("<b>") == "&lt;b&gt;"
