"""The overview of a batch: what it says of sweeps that are not measured to their end, and of disturbed ones."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from report_sweeps import BASELINE, STARTED, WINNER, manifest, measured

from kvray.analysis import analyse
from kvray.jobs.doorman import JOB
from kvray.record import TrialResult
from kvray.report.info import report_info
from kvray.report.overview import overview_info, render_overview_html, render_overview_markdown
from kvray.store.batch_manifest import BatchAttempt, BatchManifest, BatchStatus, BatchSweep
from kvray.store.batch_table import BatchRow
from kvray.store.parquet import ResultsStore
from kvray.tuning.batch_rows import batch_row, result_columns
from kvray.tuning.result import TuneResult

TWO = (measured(BASELINE), measured(WINNER, speed=1.5))


def row(status: BatchStatus, results: Sequence[TrialResult] = (), *, model: str = "org/name") -> BatchRow:
    about = manifest()
    result = TuneResult(
        manifest=about,
        results=tuple(results),
        analysis=analyse(results, about.profile, seed=about.seed),
        records=(),
        paths=ResultsStore(Path("results")).paths("r"),
    )
    columns = result_columns(result, is_measured=status.is_measured)
    return BatchRow(batch_id="b", run_id="r", model_id=model, profile="ci-micro", status=status, **columns)


def pages(*rows: BatchRow) -> tuple[str, str, str]:
    """Headline, Markdown and HTML of the overview."""
    sweep = BatchSweep(run_id="r", model_id="org/name", profile=manifest().profile)
    attempt = BatchAttempt(started_at=STARTED, kvray_version="0")
    batch = BatchManifest(batch_id="b", created_at=STARTED, sweeps=(sweep,), attempts=(attempt,))
    info = overview_info(batch, rows, written_at=STARTED + dt.timedelta(hours=9))
    return info.sentence, render_overview_markdown(info), render_overview_html(info)


def disturbed(result: TrialResult) -> TrialResult:
    return replace(result, runs=tuple(replace(run, disturbed=True, disturbance="load") for run in result.runs))


def test_a_sweep_that_was_broken_off_has_a_best_so_far_and_no_winner() -> None:
    broken_off = row(BatchStatus.INTERRUPTED, TWO)
    assert (broken_off.winner, broken_off.confidence, broken_off.trials) == (None, None, 2)
    assert broken_off.reason == f"best so far: {WINNER.label}"
    ended = row(BatchStatus.OK, TWO)
    assert (ended.winner, ended.reason, ended.is_disturbed) == (WINNER.label, None, False)
    assert ended.confidence is not None


def test_the_headline_counts_the_sweeps_by_how_they_ended() -> None:
    waiting = replace(row(BatchStatus.WAITING), status=BatchStatus.WAITING)
    sentence, *_ = pages(row(BatchStatus.OK, TWO), row(BatchStatus.INTERRUPTED, TWO), waiting)
    assert sentence == "3 sweeps: 1 with a winner, 1 interrupted and 1 waiting."


def test_a_sweep_whose_runs_were_disturbed_is_marked_and_not_green() -> None:
    shaken = row(BatchStatus.OK, [disturbed(one) for one in TWO])
    assert (shaken.is_disturbed, shaken.confidence) == (True, None)
    sentence, markdown, html = pages(shaken)
    assert sentence == "1 sweep: 1 with a winner. 1 was disturbed too much to be trusted."
    assert "| ok, disturbed |" in markdown
    assert 'badge winner">ok' not in html
    told = "When the machine is quiet, kvray batch --resume b --retry disturbed"
    assert told in markdown
    assert told in html.replace("<wbr>", "")
    assert 'badge failure">disturbed' in html


def test_a_sweep_whose_every_cell_has_an_undisturbed_run_is_not_marked() -> None:
    def mostly_disturbed(result: TrialResult) -> TrialResult:
        return replace(result, runs=tuple(replace(run, disturbed=run.repeat > 0) for run in result.runs))

    assert row(BatchStatus.OK, [mostly_disturbed(one) for one in TWO]).is_disturbed is False


def test_a_disturbed_batch_is_measured_again_by_the_command_that_sent_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB, "1")
    _, markdown, _ = pages(row(BatchStatus.OK, [disturbed(one) for one in TWO]))
    assert "repeat the kvray submit batch command with --resume b --retry disturbed." in markdown


def test_the_pages_say_what_was_measured_on_and_when_they_were_written() -> None:
    one = row(BatchStatus.OK, TWO)
    assert one.device_name is not None
    _, *both = pages(one, replace(row(BatchStatus.WAITING), status=BatchStatus.WAITING, device_name=None))
    told = f"2 sweeps on {one.device_name}; begun 2026-11-24 21:30 UTC, this page written 2026-11-25 06:30 UTC"
    assert all(told in page for page in both)
    assert all(f"on {one.device_name}" not in page.replace(told, "") for page in both), "one device is told once"


def test_where_a_batch_measured_on_several_devices_each_sweep_names_its_own() -> None:
    one, other = row(BatchStatus.OK, TWO), replace(row(BatchStatus.OK, TWO), device_name="NVIDIA H100")
    _, markdown, html = pages(one, other)
    assert f"2 sweeps on {one.device_name} and NVIDIA H100; begun" in markdown
    assert "ci-micro on NVIDIA H100 |" in markdown
    assert "<small>on NVIDIA H100</small>" in html


def test_a_baseline_that_wins_says_that_nothing_is_gained() -> None:
    _, markdown, html = pages(row(BatchStatus.OK, TWO[:1]))
    assert markdown.count("none: the baseline wins") == html.count("none: the baseline wins") == 3
    assert "±0 %" not in markdown + html


def test_what_follows_the_baselines_mark_is_apart_from_it() -> None:
    _, markdown, _ = pages(replace(row(BatchStatus.OK, TWO[:1]), reason="a reason"))
    assert "*baseline* a reason" in markdown


def test_models_have_short_names_and_sweeps_of_one_model_say_what_tells_them_apart() -> None:
    asked: tuple[tuple[str, dict[str, Any]], ...] = (
        ("/models/a/tiny.gguf", {"caches": ["dynamic"], "search": "grid"}),
        ("/models/a/tiny.gguf", {"caches": ["dynamic", "static"], "search": "grid"}),
        ("/models/b/other.gguf", {}),
        ("/models/c/other.gguf", {}),
    )
    sweeps = tuple(
        BatchSweep(run_id=f"r{number}", model_id=model, profile=manifest().profile, settings=settings)
        for number, (model, settings) in enumerate(asked)
    )
    attempt = BatchAttempt(started_at=STARTED, kvray_version="0")
    batch = BatchManifest(batch_id="b", created_at=STARTED, sweeps=sweeps, attempts=(attempt,))
    rows = [replace(row(BatchStatus.WAITING, model=one.model_id), run_id=one.run_id) for one in sweeps]
    info = overview_info(batch, rows, written_at=STARTED)
    assert [(one.model, one.apart) for one in info.rows] == [
        ("tiny.gguf", "caches: dynamic"),
        ("tiny.gguf", "caches: dynamic, static"),
        ("/models/b/other.gguf", ""),
        ("/models/c/other.gguf", ""),
    ]
    assert "(caches: dynamic, static)" in render_overview_markdown(info)
    assert 'title="/models/a/tiny.gguf"' in render_overview_html(info)


def test_a_sweep_that_waits_again_shows_what_it_had(tmp_path: Path) -> None:
    about, store = manifest(), ResultsStore(tmp_path)
    store.write_manifest(about)
    for one in TWO:
        store.append(one)
    sweep = BatchSweep(run_id=about.run_id, model_id="m", profile=about.profile, reason="the budget ended")
    waiting = batch_row(store, "b", sweep)
    assert (waiting.trials, waiting.reason) == (2, f"the budget ended; best so far: {WINNER.label}")
    never = batch_row(store, "b", sweep.model_copy(update={"run_id": "other", "reason": None}))
    assert (never.trials, never.reason) == (0, None)


def test_a_model_that_was_sent_has_its_users_path_in_every_row() -> None:
    there = "/tmp/ray/session/files/1"
    about = manifest(
        model_id=there,
        sent_models={there: "./my-model"},
        command="kvray submit --upload-model tune",
        arguments=("./my-model", "--profile=mine.json"),
    )
    info = report_info(about, TWO, analyse(TWO, about.profile))
    facts = {fact.name: fact.text for fact in (*info.environment, *info.comparable)}
    assert info.title == "KV cache of ./my-model"
    assert (facts["Model"], facts["model"]) == ("./my-model", "./my-model")
    assert facts["Repeat it with"] == "kvray submit --upload-model tune ./my-model --profile=mine.json"
    sweep = BatchSweep(run_id="r", model_id="sent/0/my-model", sent_from="./my-model", profile=about.profile)
    assert sweep.title == "./my-model · chat-agent"
    row_of = batch_row(ResultsStore("unread"), "b", sweep.model_copy(update={"status": BatchStatus.FAILED}))
    assert row_of.model_id == "./my-model"


def test_a_page_that_a_killed_batch_left_claims_nothing_of_now() -> None:
    sentence, markdown, _ = pages(row(BatchStatus.MEASURING, TWO))
    assert sentence == "1 sweep: 1 measuring when this page was written."
    assert sentence in markdown


def test_a_failure_has_another_colour_than_a_winner_and_a_baseline() -> None:
    style = (resources.files("kvray.report") / "templates" / "report.css").read_text(encoding="utf-8")
    rules = dict(re.findall(r"^\.badge\.(\w+) (\{.*\})$", style, re.MULTILINE))
    assert len({rules[name] for name in ("winner", "baseline", "failure")}) == 3
    html = pages(row(BatchStatus.OK, TWO), row(BatchStatus.FAILED))[2]
    assert '<span class="badge winner">ok</span>' in html
    assert '<span class="badge failure">failed</span>' in html
