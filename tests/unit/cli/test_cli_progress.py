"""What is said while a sweep runs, on a clock that the test turns."""

from __future__ import annotations

import datetime as dt
import io
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from kvray.analysis.ranking import rank
from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, CompileMode, DeviceType, DType
from kvray.cli.batch_progress import batch_progress
from kvray.cli.job_events import JobLog, JobProgress
from kvray.cli.progress import MEASURING, SHOWN_TRIALS, LineProgress, LiveProgress, render_state
from kvray.config import TuneConfig
from kvray.engines.base import ModelRequest
from kvray.jobs.doorman import MARK
from kvray.record import Phase, Role, Run, TrialRecord, TrialResult, TrialStatus
from kvray.store.batch_manifest import BatchSweep
from kvray.store.manifest import MeasuredType, SweepManifest
from kvray.sweep.outlook import Outlook
from kvray.testing.fake import FakeAdapter
from kvray.trial.position import Position, PositionBoard
from kvray.trial.spec import TrialSpec
from kvray.tuning.preview import Preview, preview_sweep
from kvray.tuning.resolved import check_request, resolve
from kvray.tuning.standing import SweepState
from kvray.workload import Cell, Limits, WorkloadProfile

NOW = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
PROFILE = WorkloadProfile(
    name="small",
    context_lengths=(16,),
    output_lengths=(4,),
    weight_ttft=0.4,
    weight_throughput=0.4,
    weight_memory=0.2,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def preview() -> Preview:
    config = TuneConfig(model_id="fake:ok", profile=PROFILE, device=DeviceType.CPU, engine="fake")
    return preview_sweep(resolve(check_request(config, FakeAdapter())))


@pytest.fixture
def manifest(preview: Preview) -> SweepManifest:
    return manifest_of(preview)


def manifest_of(preview: Preview, *, budget_s: float | None = None) -> SweepManifest:
    return SweepManifest(
        kvray_version="0",
        run_id="r1",
        created_at=NOW,
        model_id="fake:ok",
        model_revision="1",
        architecture="Fake",
        engine="fake",
        device="cpu",
        device_name="A CPU",
        profile=PROFILE,
        baseline_id=preview.space.baseline.candidate_id,
        memory_note="note",
        budget_s=budget_s,
    )


def specs_of(preview: Preview) -> list[TrialSpec]:
    return [spec_of(candidate, preview) for candidate in preview.space.candidates]


def spec_of(candidate: Candidate, preview: Preview) -> TrialSpec:
    return TrialSpec(
        run_id="r1",
        trial_id=f"t-{candidate.candidate_id}",
        role=Role.BASELINE if candidate == preview.space.baseline else Role.SEARCH,
        request=ModelRequest(model_id="fake:ok"),
        candidate=candidate,
        profile=PROFILE,
        device=DeviceType.CPU,
        timeout_s=60.0,
    )


def result_of(
    spec: TrialSpec,
    *,
    ttft_ms: float = 100.0,
    tok_s: float = 50.0,
    rung: int | None = 2,
    status: TrialStatus = TrialStatus.OK,
    message: str | None = None,
) -> TrialResult:
    record = TrialRecord.of(
        spec.candidate,
        run_id="r1",
        trial_id=spec.trial_id,
        role=spec.role,
        model_id="fake:ok",
        profile="small",
        status=status,
        rung=rung,
        message=message,
    )
    runs = tuple(
        Run(
            run_id="r1",
            trial_id=spec.trial_id,
            candidate_id=record.candidate_id,
            context_tokens=cell.context_tokens,
            output_tokens=cell.output_tokens,
            batch_size=1,
            rung=done,
            repeat=0,
            ttft_ms=ttft_ms,
            itl_ms=(20.0, 20.0, 20.0),
            decode_tok_s=tok_s,
            peak_mib=1000.0,
            started_at=NOW,
        )
        for done in range(0 if rung is None else rung + 1)
        for cell in PROFILE.cells(1, rung=done)
    )
    return TrialResult(record=record, runs=runs)


def state_of(preview: Preview, *, clock: Clock | None = None, budget_s: float | None = None) -> SweepState:
    state = SweepState(clock=clock or Clock())
    state.start(preview, manifest_of(preview, budget_s=budget_s), [])
    return state


def finish(state: SweepState, preview: Preview, spec: TrialSpec, **values: float) -> None:
    state.begin(spec)
    state.update(result_of(spec, **values), preview, ended=True)  # type: ignore[arg-type]


# SweepState


def test_nothing_is_best_before_a_trial_is_complete(preview: Preview) -> None:
    state, (baseline, *_) = state_of(preview), specs_of(preview)
    state.begin(baseline)
    state.update(result_of(baseline, rung=1), preview, ended=False)
    assert state.so_far.best() is None
    assert state.best_line() == "best so far: none yet"
    assert state.gain_line() is None


def test_the_baseline_alone_is_the_best_and_says_so(preview: Preview) -> None:
    state, (baseline, *_) = state_of(preview), specs_of(preview)
    finish(state, preview, baseline, ttft_ms=100.0, tok_s=50.0)
    assert state.best_line() == "best so far: dynamic/sdpa/float32 · TTFT 100 ms · 50.0 tok/s"
    assert state.gain_line() == "this is the baseline"


def test_the_best_is_compared_with_the_baseline(preview: Preview) -> None:
    state, (baseline, other, *_) = state_of(preview), specs_of(preview)
    finish(state, preview, baseline, ttft_ms=100.0, tok_s=50.0)
    finish(state, preview, other, ttft_ms=50.0, tok_s=49.0)
    assert state.best_line() == "best so far: dynamic/eager/float32 · TTFT 50.0 ms · 49.0 tok/s"
    assert state.gain_line() == "over the baseline: first token 2.00× as fast, 2 % fewer tok/s"


def test_without_a_complete_baseline_nothing_is_compared(preview: Preview) -> None:
    state, (baseline, other, *_) = state_of(preview), specs_of(preview)
    state.begin(baseline)
    state.update(result_of(baseline, rung=None, status=TrialStatus.OOM), preview, ended=True)
    finish(state, preview, other)
    assert state.best_line().startswith("best so far: dynamic/eager/float32")
    assert state.gain_line() is None


def test_a_stopped_trial_is_never_the_best(preview: Preview) -> None:
    state, (baseline, fast, *_) = state_of(preview), specs_of(preview)
    finish(state, preview, baseline)
    state.begin(fast)
    state.update(result_of(fast, ttft_ms=1.0, tok_s=999.0, rung=0, status=TrialStatus.STOPPED), preview, ended=True)
    assert state.best_line().startswith("best so far: dynamic/sdpa/float32")


def test_what_misses_a_limit_is_never_the_best(preview: Preview) -> None:
    limited = replace(preview, profile=PROFILE.model_copy(update={"limits": Limits(max_ttft_ms=90.0)}))
    state, (baseline, slow, *_) = state_of(limited), specs_of(limited)
    finish(state, limited, baseline, ttft_ms=100.0, tok_s=50.0)
    assert state.so_far.best() is None
    finish(state, limited, slow, ttft_ms=90.0, tok_s=5.0)
    assert state.best_line().startswith("best so far: dynamic/eager/float32")
    assert state.gain_line() == "over the baseline: first token 11 % faster, 1/10 of the tok/s"


def test_a_trial_whose_slot_died_before_it_began_is_still_counted(preview: Preview) -> None:
    state, (baseline, *_) = state_of(preview), specs_of(preview)
    standing = state.update(result_of(baseline, rung=None, status=TrialStatus.CRASHED), preview, ended=True)
    assert (standing.label, standing.state, state.finished) == ("dynamic/sdpa/float32", "crashed", 1)


def test_how_many_candidates_were_tried_and_how_long_that_took_is_told(preview: Preview) -> None:
    clock = Clock()
    state, (baseline, *_) = state_of(preview, clock=clock), specs_of(preview)
    clock.now += 9
    assert state.time_line() == "0 of 12 candidates tried · 9 s passed"
    finish(state, preview, baseline)
    clock.now += 50.7
    assert state.time_line() == "1 of 12 candidates tried · 1:00 min passed"


def test_a_bound_on_launches_is_told_beside_the_candidates(preview: Preview) -> None:
    state = SweepState(clock=Clock())
    state.start(preview, manifest_of(preview).model_copy(update={"max_trials": 4}), [])
    assert state.time_line() == "0 of at most 4 of 12 candidates tried · 0 s passed"


def test_a_budget_is_told_beside_the_time_passed(preview: Preview) -> None:
    clock = Clock()
    state = state_of(preview, clock=clock, budget_s=1200.0)
    clock.now += 30
    assert state.time_line().endswith("30 s of 20:00 min passed")


def test_confirming_runs_are_counted_apart(preview: Preview) -> None:
    state, (baseline, *_) = state_of(preview), specs_of(preview)
    finish(state, preview, baseline)
    state.outlook = Outlook(confirming=2, confirming_most=9)
    finish(state, preview, replace(baseline, trial_id="confirm-1", role=Role.CONFIRM))
    assert state.time_line() == "1 of 12 candidates tried · confirming 2 of 9 · 0 s passed"


def test_the_time_left_is_told_as_soon_as_it_can_be_guessed(preview: Preview) -> None:
    state = state_of(preview)
    state.foresee(Outlook(left_s=(170.0, 560.0)))
    assert state.time_line() == "0 of 12 candidates tried · 0 s passed · about 3 to 9 min left"


def test_a_view_tells_what_a_running_trial_does(preview: Preview, tmp_path: Path) -> None:
    state, board, (baseline, *_) = SweepState(clock=Clock()), PositionBoard(tmp_path), specs_of(preview)
    state.start(preview, manifest_of(preview), [], board)
    state.begin(baseline)
    assert state.doing() == []
    board.write(baseline.trial_id, Position(phase=Phase.WARMUP, cell=Cell(512, 64, 1)))
    assert state.doing() == [f"warming up 512→64: {baseline.candidate.label}"]
    assert f"running: {baseline.candidate.label} warming up 512→64" in state.pulse_line()
    finish(state, preview, baseline)
    assert state.doing() == []


def test_what_an_earlier_attempt_tried_beyond_the_limit_of_this_one_counts_as_allowed(preview: Preview) -> None:
    state = SweepState(clock=Clock())
    recorded = [result_of(spec) for spec in specs_of(preview)[:3]]
    state.start(preview, manifest_of(preview).model_copy(update={"max_trials": 2}), recorded)
    assert state.time_line() == "3 of at most 3 of 12 candidates tried · 0 s passed"


def test_a_disturbed_process_does_not_count_beside_a_calm_one(preview: Preview) -> None:
    state, (baseline, other, *_) = SweepState(clock=Clock()), specs_of(preview)
    state.start(preview, manifest_of(preview), [result_of(baseline, ttft_ms=100.0), result_of(other, ttft_ms=90.0)])
    again = result_of(replace(baseline, trial_id="confirm", role=Role.CONFIRM), ttft_ms=5000.0)
    runs = tuple(replace(run, disturbed=True) for run in again.runs)
    state.update(replace(again, runs=runs), preview, ended=True)

    found = state.so_far.baseline()
    assert found is not None
    assert found.metrics is not None
    assert found.metrics.ttft_ms == pytest.approx(100.0)
    assert not found.rests_on_disturbed
    gain = state.so_far.gain()
    assert gain is not None
    assert gain.ttft == pytest.approx(1 / 0.9 - 1)


def test_what_an_earlier_attempt_has_recorded_counts_as_tried(preview: Preview) -> None:
    state, (baseline, *_) = SweepState(clock=Clock()), specs_of(preview)
    state.start(preview, manifest_of(preview), [result_of(baseline)])
    assert state.time_line() == "1 of 12 candidates tried · 0 s passed"
    assert state.so_far.best() is not None


# LineProgress


def test_lines_tell_every_event_once(preview: Preview, manifest: SweepManifest) -> None:
    console = Console(file=io.StringIO(), width=40)
    progress, (baseline, other, *_) = LineProgress(console), specs_of(preview)
    progress.search_started(preview, manifest, [])
    progress.trial_started(baseline)
    progress.rung_finished(result_of(baseline, rung=0))
    progress.trial_finished(result_of(baseline))
    progress.trial_started(other)
    progress.trial_finished(result_of(other, rung=None, status=TrialStatus.OOM, message="no\nmemory"))
    lines = printed(console)
    assert lines[0] == f"sweep r1: fake:ok · small · {preview.device.device_name} (cpu) · 12 candidates"
    assert lines[1:4] == [
        "start   dynamic/sdpa/float32",
        "rung 0  dynamic/sdpa/float32 · TTFT 100 ms · 50.0 tok/s",
        "ok      dynamic/sdpa/float32 · TTFT 100 ms · 50.0 tok/s",
    ]
    assert lines[4].startswith("        1 of 12 candidates tried · ")
    assert lines[4].endswith("best so far: dynamic/sdpa/float32 · TTFT 100 ms · 50.0 tok/s · this is the baseline")
    assert lines[5:7] == ["start   dynamic/eager/float32", "oom     dynamic/eager/float32 · no memory"]
    assert len(lines) == 8


def test_a_log_in_which_nothing_happens_says_what_is_running(preview: Preview, manifest: SweepManifest) -> None:
    console = Console(file=io.StringIO(), width=40)
    with LineProgress(console, quiet_s=0.02) as progress:
        time.sleep(0.1)
        assert printed(console) == [], "there is no sweep yet"
        progress.search_started(preview, manifest, [])
        progress.trial_started(specs_of(preview)[0])
        told = re.compile(r"^ {8}0 of 12 candidates tried · \d+ s passed · running: dynamic/sdpa/float32$")
        deadline = time.monotonic() + 240
        while not any(map(told.match, printed(console))) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert any(map(told.match, printed(console))), printed(console)


def test_who_reads_the_log_of_a_quiet_job_learns_how_much_time_has_passed(
    preview: Preview, manifest: SweepManifest
) -> None:
    written = io.StringIO()
    with JobProgress(Console(file=written), quiet_s=0.02) as progress:
        progress.search_started(preview, manifest, [])
        progress.trial_started(specs_of(preview)[0])
        before, deadline = written.getvalue(), time.monotonic() + 240
        while "running:" not in written.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    events = [json.loads(line.removeprefix(MARK)) for line in written.getvalue().split("\n") if line.startswith(MARK)]
    assert events[-1]["passed_s"] > events[before.count(MARK) - 1]["passed_s"]
    lines = JobLog().feed(written.getvalue())
    assert any("running: dynamic/sdpa/float32" in line and told for line, told in lines)


def test_that_the_device_is_measured_is_said_because_it_takes_seconds() -> None:
    lines, live = Console(file=io.StringIO()), Console(file=io.StringIO())
    LineProgress(lines).measuring_device()
    LiveProgress(live).measuring_device()
    assert printed(lines) == printed(live) == [MEASURING]


def test_trials_of_an_earlier_session_are_said_in_a_line(preview: Preview, manifest: SweepManifest) -> None:
    baseline, *_ = specs_of(preview)
    early = result_of(baseline)
    begun = manifest.created_at - dt.timedelta(days=2)
    recorded = [replace(early, record=early.record.with_(started_at=begun))]
    console = Console(file=io.StringIO(), width=120)
    LineProgress(console).search_started(preview, manifest, recorded)
    told = f"1 trial is from an earlier session on {begun:%Y-%m-%d}"
    assert printed(console)[1:] == [told]
    state = SweepState()
    state.start(preview, manifest, recorded)
    live = Console(file=io.StringIO(), width=120)
    live.print(render_state(state))
    assert told in printed(live)


def test_brackets_in_a_message_are_text_not_markup(preview: Preview, manifest: SweepManifest) -> None:
    console = Console(file=io.StringIO())
    progress, (baseline, *_) = LineProgress(console), specs_of(preview)
    progress.search_started(preview, manifest, [])
    progress.trial_started(baseline)
    progress.trial_finished(result_of(baseline, rung=None, status=TrialStatus.ERROR, message="[red]x[/red]"))
    assert "error   dynamic/sdpa/float32 · [red]x[/red]" in printed(console)


def printed(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


# The live view


def test_the_time_left_runs_down_until_it_is_foreseen_anew(preview: Preview) -> None:
    clock = Clock()
    state = state_of(preview, clock=clock)
    state.foresee(Outlook(left_s=(60.0, 120.0)))
    clock.now += 90
    assert state.left_s() == (0.0, 30.0)
    state.foresee(Outlook(left_s=(10.0, 20.0)))
    assert state.left_s() == (10.0, 20.0)


def test_no_time_is_said_to_be_left_when_what_was_foreseen_has_passed(preview: Preview) -> None:
    clock = Clock()
    state, spec = state_of(preview, clock=clock), specs_of(preview)[0]
    state.begin(spec)
    state.foresee(Outlook(left_s=(10.0, 20.0)))
    clock.now += 19
    assert state.time_line().endswith(" · about 5 s left")
    clock.now += 60
    assert state.time_line().endswith(" passed · takes longer than expected")
    state.update(result_of(spec), preview, ended=True)
    assert state.time_line().endswith(" passed"), "nothing runs any more"


def test_trials_are_counted_by_state_and_the_best_is_told_beside_the_baseline(preview: Preview) -> None:
    state, (baseline, second, third, *_) = state_of(preview), specs_of(preview)
    finish(state, preview, baseline, ttft_ms=100.0)
    assert state.so_far.gain() is not None
    finish(state, preview, second, ttft_ms=50.0)
    state.begin(third)
    gain = state.so_far.gain()
    assert gain is not None
    assert (gain.ttft, gain.throughput) == pytest.approx((1.0, 0.0))
    assert state.counts() == {"running": 1, "ok": 2}


def test_what_ran_when_the_sweep_ended_has_the_word_of_the_records(preview: Preview) -> None:
    state, (baseline, other, *_) = state_of(preview), specs_of(preview)
    finish(state, preview, baseline)
    state.begin(other)
    state.break_off()
    assert state.counts() == {"ok": 1, TrialStatus.INTERRUPTED.value: 1}


def rendered(state: SweepState, width: int = 80) -> list[str]:
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(render_state(state))
    return [line.rstrip() for line in console.export_text().splitlines()]


BATCH_SWEEP = BatchSweep(run_id="r1", model_id="fake:ok", profile=PROFILE)


def test_in_a_batch_every_event_of_a_sweep_is_a_line_that_names_its_model(
    preview: Preview, manifest: SweepManifest
) -> None:
    console = Console(file=io.StringIO(), width=200)
    spec = specs_of(preview)[0]
    with batch_progress(console) as view, view(BATCH_SWEEP) as observer:
        observer.search_started(preview, manifest, [])
        observer.trial_started(spec)
        observer.rung_finished(result_of(spec, rung=0))
        observer.trial_finished(result_of(spec))
    lines = printed(console)
    assert all(line.startswith("fake:ok · small: ") for line in lines)
    assert [line.split(": ", 1)[1].split()[0] for line in lines] == ["sweep", "start", "rung", "ok", "1"]


def test_in_a_batch_on_a_terminal_each_sweep_is_one_line_while_it_measures(
    preview: Preview, manifest: SweepManifest
) -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=True)
    other = BATCH_SWEEP.model_copy(update={"run_id": "r2", "model_id": "fake:other"})
    with batch_progress(console) as view, view(BATCH_SWEEP) as observer, view(other):
        observer.search_started(preview, manifest, [])
        observer.trial_started(specs_of(preview)[0])
        observer.trial_finished(result_of(specs_of(preview)[0]))
        time.sleep(0.3)  # the view is drawn four times a second
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"fake:ok · small: 1 of \d+ candidates tried[^\n]*…\n", drawn.replace("\r", ""))
    assert "fake:other · small" in drawn


def test_the_live_view_fits_eighty_columns_without_a_wrapped_line(preview: Preview) -> None:
    state, specs = state_of(preview), specs_of(preview)
    state.title = "model · profile · a device whose name is far longer than the eighty columns of a terminal (cuda)"
    for number, spec in enumerate(specs):
        finish(state, preview, spec, ttft_ms=12345.0 + number, tok_s=0.5)
    lines = rendered(state)
    assert all(len(line) <= 80 for line in lines)
    assert len(lines) == len(("title", "header", *specs, "best", "gain", "time"))
    assert lines[0].endswith("…")
    assert lines[1].split() == ["candidate", "rung", "TTFT", "ms", "tok/s", "peak", "MiB"]
    assert lines[2].split() == ["ok", "dynamic/sdpa/float32", "2/2", "12,345", "0.500", "1,000"]
    assert lines[-3] == "best so far: dynamic/sdpa/float32 · TTFT 12,345 ms · 0.500 tok/s"
    assert lines[-2] == "      this is the baseline"
    assert lines[-1].startswith("12 of 12 candidates tried · ")


def test_a_long_label_is_shortened_rather_than_wrapped(preview: Preview) -> None:
    longest = Candidate(
        engine="fake",
        cache=CacheStrategy.DYNAMIC,
        attention=AttentionBackend.SDPA_EFFICIENT,
        dtype=DType.BFLOAT16,
        compile=CompileMode.REDUCE_OVERHEAD,
        cache_params=(("window", 4096),),
    )
    state = state_of(preview)
    state.begin(spec_of(longest, preview))
    _, header, row, *rest = rendered(state)
    assert header.split() == ["candidate", "rung", "TTFT", "ms", "tok/s", "peak", "MiB"]
    assert row.startswith("running  dynamic(window=4096)/sdpa_efficient")
    assert row.endswith("…")
    assert rest == ["best so far: none yet", "0 of 12 candidates tried · 0 s passed"]


def test_only_the_latest_trials_are_shown(preview: Preview) -> None:
    state = state_of(preview)
    for repeat in range(2):
        for spec in specs_of(preview):
            state.begin(replace(spec, trial_id=f"{repeat}-{spec.trial_id}"))
    rows = [line for line in rendered(state) if line.startswith("running")]
    assert len(rows) == SHOWN_TRIALS < len(state.standings)


def test_the_live_view_is_gone_when_the_sweep_ends(preview: Preview, manifest: SweepManifest) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    baseline = specs_of(preview)[0]
    with LiveProgress(console) as progress:
        progress.search_started(preview, manifest, [])
        progress.trial_started(baseline)
        progress.rung_finished(result_of(baseline, rung=0))
        progress.trial_finished(result_of(baseline))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "dynamic/sdpa/float32" in text
    assert text.rstrip().endswith("\x1b[2K"), "the last thing written erases the view"


def again(spec: TrialSpec, number: int) -> TrialSpec:
    return replace(spec, trial_id=f"confirm-{number}-{spec.candidate.candidate_id}", role=Role.CONFIRM)


def test_the_best_so_far_and_its_gain_are_those_of_the_ranking(preview: Preview) -> None:
    state, (baseline, other, third, *_) = state_of(preview), specs_of(preview)
    results = [
        result_of(spec, ttft_ms=ttft_ms, tok_s=tok_s)
        for spec, ttft_ms, tok_s in (
            (baseline, 100.0, 50.0),
            (other, 20.0, 50.0),
            (third, 95.0, 49.0),
            (again(baseline, 1), 110.0, 40.0),
            (again(other, 1), 80.0, 45.0),
            (again(other, 2), 90.0, 47.0),
        )
    ]
    for result in results:
        state.update(result, preview, ended=True)
        winner = rank(results[: results.index(result) + 1], PROFILE).winner
        best, gain = state.so_far.best(), state.so_far.gain()
        assert best is not None
        assert (best.candidate_id, best.metrics) == (winner.record.candidate_id, winner.metrics)
        assert winner.gain is not None
        assert gain == replace(winner.gain, ttft_interval=None, throughput_interval=None)
    assert state.best_line() == f"best so far: {other.candidate.label} · TTFT 80.0 ms · 47.0 tok/s"
    assert state.gain_line() == "over the baseline: first token 38 % faster, 12 % more tok/s"


def test_a_single_process_that_misses_a_limit_by_noise_excludes_nobody(preview: Preview) -> None:
    limited = replace(preview, profile=PROFILE.model_copy(update={"limits": Limits(max_ttft_ms=100.0)}))
    state, (baseline, *_) = state_of(limited), specs_of(limited)
    for spec, ttft_ms in ((baseline, 90.0), (again(baseline, 1), 101.0), (again(baseline, 2), 95.0)):
        finish(state, limited, spec, ttft_ms=ttft_ms)
    assert state.best_line() == "best so far: dynamic/sdpa/float32 · TTFT 95.0 ms · 50.0 tok/s"


def test_who_follows_a_job_sees_the_best_and_the_gain_of_its_driver(preview: Preview, manifest: SweepManifest) -> None:
    written = io.StringIO()
    progress, (baseline, other, *_) = JobProgress(Console(file=written)), specs_of(preview)
    progress.search_started(preview, manifest, [result_of(baseline)])
    for spec, ttft_ms in ((other, 20.0), (again(other, 1), 80.0), (again(baseline, 1), 120.0)):
        progress.trial_started(spec)
        progress.trial_finished(result_of(spec, ttft_ms=ttft_ms))
    driver, log = progress._state, JobLog()
    log.feed(written.getvalue())
    assert log.state.best_line() == driver.best_line()
    assert (
        log.state.gain_line() == driver.gain_line() == ("over the baseline: first token 1.50× as fast, the same tok/s")
    )


def test_what_is_to_be_known_of_the_model_is_said_at_the_start(preview: Preview, manifest: SweepManifest) -> None:
    manifest = manifest.model_copy(update={"model_notes": ("Its weights are packed.",)})
    said = io.StringIO()
    with LineProgress(Console(file=said)) as progress:
        progress.search_started(preview, manifest, ())
    assert "note: Its weights are packed.\n" in said.getvalue()
    state = SweepState()
    state.start(preview, manifest, ())
    console = Console(file=io.StringIO(), record=True)
    console.print(render_state(state))
    assert "note: Its weights are packed." in console.export_text()


def test_each_type_of_gpu_has_a_best_of_its_own_and_the_time_left_is_that_of_the_slowest(preview: Preview) -> None:
    types = [MeasuredType(gpu_type=name, device_name=f"NVIDIA {name}", baseline_id="") for name in ("A100", "H100")]
    about = manifest_of(preview).model_copy(update={"gpu_types": tuple(types)})
    state = SweepState(clock=Clock())
    for _ in types:
        state.start(preview, about, [])
    assert state.total == 2 * len(preview.space.candidates)
    assert "NVIDIA A100 + NVIDIA H100" in state.title
    baseline, other, *_ = specs_of(preview)
    for name, ttft_ms in (("A100", 80.0), ("H100", 20.0)):
        for spec, factor in ((baseline, 2.0), (other, 1.0)):
            on_type = replace(spec, trial_id=f"{spec.trial_id}.{name}", gpu_type=name)
            state.begin(on_type)
            result = result_of(on_type, ttft_ms=ttft_ms * factor)
            result = replace(result, record=result.record.with_(gpu_type=name))
            state.update(result, preview, ended=True)
    label = other.candidate.label
    assert state.best_line() == (
        f"best so far: {label} on A100 · TTFT 80.0 ms · 50.0 tok/s; {label} on H100 · TTFT 20.0 ms · 50.0 tok/s"
    )
    assert state.gain_line() == "; ".join(
        f"on {name} over the baseline: first token 2.00× as fast, the same tok/s" for name in ("A100", "H100")
    )
    assert state.best_labels() == {f"{label} on A100", f"{label} on H100"}
    state.foresee(Outlook(left_s=(60.0, 120.0), confirming=1, confirming_most=3, gpu_type="A100"))
    state.foresee(Outlook(left_s=(30.0, 300.0), confirming=2, confirming_most=4, gpu_type="H100"))
    assert state.left_s() == (60.0, 300.0)
    assert "confirming 3 of 7" in state.time_line()
