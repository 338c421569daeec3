"""Observations through `Watch`, with made-up measurements: what is kept, told, refused and continued."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib.util
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from checked import candidate, checked
from observations import WATCH_START, plain_observation

from kvray.check.check_file import write_output
from kvray.check.config import Consent
from kvray.check.result import CheckedModel, SideInfo
from kvray.check.watch.config import WatchConfig, WhenBusy
from kvray.check.watch.events import EventKind, Observation, ObservationRole, Sink, WatchEvent, WatchIdentity
from kvray.check.watch.loop import Watch
from kvray.check.watch.page_info import page_info
from kvray.check.watch.subject import Subject, observation_id, prepare, read_target
from kvray.errors import (
    AllTrialsFailedError,
    EngineError,
    InvalidValueError,
    KvrayError,
    ModelError,
    OutputError,
    RegressionError,
    ResultsError,
)
from kvray.extras import Extra
from kvray.probes.holds import hold
from kvray.store.history import WatchHistory
from kvray.testing.fake import FakeAdapter

START = WATCH_START.timestamp()
EVERY_S = 6 * 3600.0
Measure = Callable[[ObservationRole, int], float]


class Told:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.events: list[WatchEvent] = []

    def tell(self, event: WatchEvent) -> None:
        self.events.append(event)

    def close(self) -> None: ...

    @property
    def kinds(self) -> list[str]:
        return [one.kind.value for one in self.events]


class Measured:
    """In place of processes: `slow` is how many times as long a first token takes."""

    def __init__(self, subject: Subject, timeout_s: float) -> None:
        self._subject = subject
        self.slow = 1.0
        self.processes = 3
        self.hardware = "12345678"
        self.before: Callable[[], None] = lambda: None

    def observe(
        self, role: ObservationRole, processes: int, *, at: dt.datetime, load: str | None, run_id: str
    ) -> Observation:
        self.before()
        count = min(processes, self.processes) if role is ObservationRole.WINNER else processes
        times = [
            10 * self.slow * math.exp(0.01 * math.sin(7 * at.timestamp() / 3600 + place)) for place in range(count)
        ]
        return plain_observation(
            observation_id=observation_id(at, role),
            watch_id=self._subject.watch_id,
            observed_at=at,
            role=role if count else ObservationRole.ANCHOR,
            candidate_id=self._subject.candidate.candidate_id,
            model_id="fake:ok",
            hardware=self.hardware,
            processes=count,
            ttft_ms=times[0] if times else None,
            ttft_ms_each=tuple(times),
            decode_tok_s_each=tuple(100.0 + place / 10 for place in range(count)),
            peak_mib_each=(900.0,) * count,
            copy_gb_s=20.0,
            matmul_gflop_s=80.0,
            load=load,
            message=None if count else "it crashed in load: exit code 7.",
        )


class Bench:
    """A folder with a plan, and a watch of it that a test makes again and again, as a cron does."""

    def __init__(self, folder: Path) -> None:
        self.plan = folder / "check.json"
        self.folder = folder / "watch"
        self.told = Told()
        self.now_s = START
        self.busy: Sequence[str] = ()
        self.measured: Measured | None = None
        self.slow = 1.0
        self.prepare: Callable[[Measured], None] = lambda _: None
        write_plan(self.plan)

    def watch(self, *, every_s: float | None = None, when_busy: WhenBusy = WhenBusy.WAIT) -> Watch:
        config = WatchConfig(plan=str(self.plan), every_s=every_s, when_busy=when_busy, wait_quiet_s=3.0)
        return Watch(
            config,
            open_sinks=lambda folder, history, identity: (self.told,),
            open_measurer=self._measurer,
            look=lambda device: self.busy,
            clock=lambda: self.now_s,
            elapsed=lambda: self.now_s,
            pause=self._pause,
        )

    def once(self, count: int = 1, *, when_busy: WhenBusy = WhenBusy.WAIT) -> KvrayError | None:
        """How the last of `count` runs ended."""
        error: KvrayError | None = None
        for _ in range(count):
            try:
                self.watch(when_busy=when_busy).run()
                error = None
            except KvrayError as ended:
                error = ended
            self.now_s += EVERY_S
        return error

    @property
    def rows(self) -> list[Observation]:
        return WatchHistory(self.folder).read_any()

    @contextlib.contextmanager
    def _measurer(self, subject: Subject, timeout_s: float) -> Iterator[Measured]:
        measured = Measured(subject, timeout_s)
        measured.slow = self.slow
        self.prepare(measured)
        yield measured

    def _pause(self, seconds: float) -> None:
        self.now_s += seconds


def no_space(*_: object) -> None:
    raise OutputError("Cannot write 'x': No space left on device.")


def write_plan(
    path: Path, model_id: str = "fake:ok", revision: str | None = None, model: CheckedModel | None = None
) -> None:
    models = {"fake": model or CheckedModel(model_id=model_id, model_revision=revision)}
    sides = (SideInfo(name="A"), SideInfo(name="B"))
    write_output(str(path), checked(model_id=model_id, models=models, sides=sides).model_dump_json())


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))
    return Bench(tmp_path)


def test_five_times_ok_then_slow_then_back(bench: Bench) -> None:
    assert bench.once(5) is None
    assert set(bench.told.kinds) == {"observation"}
    bench.slow = 1.5
    error = bench.once(2)
    assert isinstance(error, RegressionError)
    assert "has become worse: time to first token" in str(error)
    assert bench.told.kinds.count("suspected") == 1
    assert bench.told.kinds.count("confirmed") == 1
    assert isinstance(bench.once(), RegressionError)
    assert bench.told.kinds.count("confirmed") == 1
    bench.slow = 1.0
    bench.once(2)
    assert bench.once() is None
    assert bench.told.kinds.count("recovered") == 1
    assert [one.ttft_state for one in bench.rows if one.role is ObservationRole.WINNER][-1] == "ok"
    assert "confirm" in {one.role for one in bench.rows}


@pytest.mark.parametrize("moment", ["before it is written", "before it is told", "before the rounds"])
def test_a_watch_that_is_killed_goes_on_and_alerts_once(
    bench: Bench, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    bench.once(6)
    bench.slow = 1.6
    with monkeypatch.context() as patch:
        if moment == "before it is written":
            patch.setattr(WatchHistory, "append", killed)
        elif moment == "before it is told":
            patch.setattr("kvray.check.watch.telling.Teller.tell_row", killed)
        else:
            calls = iter((False, True))
            bench.prepare = lambda measured: setattr(measured, "before", lambda: killed() if next(calls) else None)
        with pytest.raises(KilledError):
            bench.watch().run()
    bench.prepare = lambda _: None
    bench.now_s += EVERY_S
    assert isinstance(bench.once(2), RegressionError)
    assert bench.told.kinds.count("confirmed") == 1
    ids = [one.event_id for one in bench.told.events]
    assert len(ids) == len(set(ids))
    assert set(bench.told.kinds) == {"observation", "suspected", "confirmed"}
    told = {one["event_id"] for row in bench.rows for one in json.loads(row.events)}
    assert told == set(ids)


def test_a_busy_machine_is_waited_for_then_skipped_and_said(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.busy = ("Other programs keep 2.0 of 2 CPUs busy: what is measured now will be disturbed.",)
    with caplog.at_level(logging.INFO, "kvray.watch"):
        assert bench.once() is None
    assert bench.told.kinds == ["skipped"]
    assert bench.told.events[0].text == (
        "Not measured, because others use the machine: Other programs keep 2.0 of 2 CPUs busy."
    )
    assert "Waiting for quiet, 0:00 min of 0:03 min: Other programs keep" in caplog.text
    assert "It did not become quiet within 0:03 min: this turn is skipped." in caplog.text
    assert bench.rows == []


def test_turns_that_were_skipped_are_kept_with_the_reason(bench: Bench) -> None:
    bench.once()
    bench.busy = ("Other programs keep 2.0 of 2 CPUs busy: what is measured now will be disturbed.",)
    bench.once(2)
    bench.busy = ()
    bench.once()
    skipped = WatchHistory(bench.folder).skipped()
    assert [round(one.at.timestamp() - START) for one in skipped] == [EVERY_S + 3, 2 * EVERY_S + 6]
    assert {one.reason for one in skipped} == {"Other programs keep 2.0 of 2 CPUs busy"}
    assert len(bench.rows) == 2


def test_a_skipped_turn_that_cannot_be_kept_is_told_all_the_same(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.busy = ("Other programs keep 2.0 of 2 CPUs busy: what is measured now will be disturbed.",)
    monkeypatch.setattr(WatchHistory, "append_skipped", no_space)
    assert isinstance(bench.once(), OutputError)
    assert bench.told.kinds == ["skipped", "error"]


def test_a_busy_machine_is_measured_where_that_is_asked_for(bench: Bench) -> None:
    bench.busy = ("Other programs keep 2.0 of 2 CPUs busy: what is measured now will be disturbed.",)
    assert bench.once(when_busy=WhenBusy.MEASURE) is None
    assert bench.rows[0].load == "Other programs keep 2.0 of 2 CPUs busy"


def test_every_keeps_its_hours_over_a_restart_and_survives_a_failure(bench: Bench) -> None:
    moments: list[float] = []

    def prepare(measured: Measured) -> None:
        moments.append(bench.now_s)
        if len(moments) == 2:
            raise OutputError("Cannot write.")
        if len(moments) in (4, 6):
            raise KeyboardInterrupt

    bench.prepare = prepare
    with pytest.raises(KeyboardInterrupt):
        bench.watch(every_s=EVERY_S).run()
    bench.now_s += 60
    with pytest.raises(KeyboardInterrupt):
        bench.watch(every_s=EVERY_S).run()
    hours = [round((one - START) / 3600, 2) for one in moments]
    assert hours == [0, 6, 12, 18, 18.02, 24.02]
    assert bench.told.kinds == ["observation", "error", "observation", "observation"]


def test_a_full_disk_costs_no_observation(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    append, failures = WatchHistory.append, iter((True, False, False))

    def failing(history: WatchHistory, row: Observation) -> None:
        if next(failures):
            raise OutputError("Cannot write 'x': No space left on device.")
        append(history, row)

    monkeypatch.setattr(WatchHistory, "append", failing)
    calls = iter((False, False, True))

    def prepare(measured: Measured) -> None:
        if next(calls):
            raise KeyboardInterrupt

    bench.prepare = prepare
    with pytest.raises(KeyboardInterrupt):
        bench.watch(every_s=EVERY_S).run()
    assert len(bench.rows) == 2
    assert bench.told.kinds == ["error", "observation", "observation"]


def test_once_on_a_full_disk_says_so_before_it_measures(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Measured] = []
    bench.prepare = measured.append
    monkeypatch.setattr(WatchHistory, "check_room", no_space)
    assert isinstance(bench.once(), OutputError)
    assert measured == []


@pytest.mark.parametrize("every_s", [None, EVERY_S])
def test_what_a_disk_that_has_filled_up_does_not_take_is_logged_in_full(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, every_s: float | None
) -> None:
    calls = iter((False, True))

    def prepare(measured: Measured) -> None:
        if next(calls):
            raise KeyboardInterrupt

    bench.prepare = prepare
    monkeypatch.setattr(WatchHistory, "append", no_space)
    with pytest.raises(OutputError if every_s is None else KeyboardInterrupt):
        bench.watch(every_s=every_s).run()
    assert bench.told.kinds == ["error"]
    (said,) = [one.getMessage() for one in caplog.records if "could not be written: {" in one.getMessage()]
    row = json.loads(said.partition(": ")[2])
    assert (row["role"], row["processes"], len(row["ttft_ms_each"])) == ("winner", 3, 3)
    assert row["observed_at"].startswith("2026-03-02")


def test_what_a_watch_could_not_write_is_tried_again_when_it_ends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    append, failures = WatchHistory.append, iter((True, False))
    monkeypatch.setattr(
        WatchHistory, "append", lambda history, row: no_space() if next(failures) else append(history, row)
    )
    assert isinstance(bench.once(), OutputError)
    assert len(bench.rows) == 1
    assert "could not be written" not in caplog.text


def test_an_observation_without_a_process_is_kept_and_is_an_error(bench: Bench) -> None:
    bench.prepare = lambda measured: setattr(measured, "processes", 0)
    error = bench.once()
    assert isinstance(error, AllTrialsFailedError)
    assert "it crashed in load: exit code 7" in str(error)
    assert len(bench.rows) == 1
    bench.once()
    bench.prepare = lambda _: None
    bench.once()
    assert bench.told.kinds == ["error", "observation", "observation"]
    assert [one.is_alert for one in bench.told.events] == [True, False, False]
    assert bench.told.events[0].text.endswith("can no longer be measured: it crashed in load: exit code 7.")


def engine_is_gone(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    def missing(_: FakeAdapter) -> None:
        raise EngineError("Engine 'fake' is not installed.")

    patch.setattr(FakeAdapter, "check_installed", missing)


@pytest.mark.parametrize(
    ("change", "why", "exit_code"),
    [
        (
            lambda bench, _: write_plan(bench.plan, model=CheckedModel(model_id="moved.gguf")),
            "check.json': put the model back there, or tune again.",
            4,
        ),
        (engine_is_gone, "Engine 'fake' is not installed.", 5),
        (
            lambda _, patch: patch.setattr(FakeAdapter, "axes", lambda *_: ()),
            "Not every candidate can be measured here:",
            8,
        ),
    ],
    ids=["model", "engine", "candidate"],
)
def test_what_can_no_longer_be_prepared_is_an_alert_once_and_is_in_the_history(
    bench: Bench,
    change: Callable[[Bench, pytest.MonkeyPatch], None],
    why: str,
    exit_code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench.once(2)
    bench.told.events.clear()
    with monkeypatch.context() as patch:
        change(bench, patch)
        error = bench.once(2)
    assert error is not None
    assert error.exit_code == exit_code
    assert why in str(error)
    assert [one.is_alert for one in bench.told.events] == [True, False]
    (alert, _) = bench.told.events
    assert alert.kind is EventKind.ERROR
    assert f"{alert.plan} can no longer be measured: " in alert.text
    assert why in alert.text
    assert [one.processes for one in bench.rows] == [3, 3, 0, 0]
    assert str(error) == bench.rows[-1].message
    assert page_info(bench.rows).sentence == "It can no longer be measured, since 2026-03-02 12:00 UTC."
    write_plan(bench.plan)
    assert bench.once() is None
    assert page_info(bench.rows).sentence.startswith("As good as before")


def test_an_engine_that_does_not_start_is_in_the_history_as_well(bench: Bench) -> None:
    def refuse(_: Measured) -> None:
        raise EngineError("Engine 'fake' cannot run: it is gone.")

    bench.once()
    bench.prepare = refuse
    assert isinstance(bench.once(), EngineError)
    assert [one.processes for one in bench.rows] == [3, 0]
    assert [one.kind.value for one in bench.told.events if one.is_alert] == ["error"]


def test_what_could_never_be_measured_leaves_no_folder(bench: Bench) -> None:
    write_plan(bench.plan, "another")
    error = bench.once()
    assert isinstance(error, ModelError)
    assert not bench.folder.exists()


def test_two_watches_on_one_folder_are_one_line(bench: Bench) -> None:
    about = {"pid": 77, "host": "here", "since": "2026-03-02T00:00:00+00:00"}
    with hold(bench.folder / ".partial" / "watch.lock", about):
        error = bench.once()
    assert isinstance(error, ResultsError)
    assert "is watched already, by process 77 on here, since 2026-03-02 00:00 UTC." in str(error)


def test_the_folder_of_another_plan_is_refused(bench: Bench) -> None:
    bench.once()
    write_plan(bench.plan, "fake:other")
    error = bench.once()
    assert isinstance(error, ResultsError)
    watched = prepare(read_target(str(bench.plan)), Consent()).shown.replace("other", "ok")
    assert f"holds the history of another watch: {watched}." in str(error)
    assert candidate().label in watched


def test_another_machine_is_refused(bench: Bench) -> None:
    bench.once()
    bench.prepare = lambda measured: setattr(measured, "hardware", "87654321")
    error = bench.once()
    assert isinstance(error, ResultsError)
    assert "was measured on another machine (a CPU of here" in str(error)
    assert len(bench.rows) == 1


def test_a_sink_that_raises_stops_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(event: WatchEvent) -> None:
        raise RuntimeError("a sink's own fault")

    monkeypatch.setattr(bench.told, "tell", failing)
    assert bench.once(2) is None
    assert len(bench.rows) == 2


def test_the_sinks_are_those_of_the_folder_and_see_the_history(bench: Bench) -> None:
    seen: list[int] = []

    class Looking(Told):
        def tell(self, event: WatchEvent) -> None:
            assert event.kind is EventKind.OBSERVATION
            seen.append(len(history()))

    history: Callable[[], Sequence[Observation]] = tuple

    def opened(folder: Path, rows: Callable[[], Sequence[Observation]], identity: WatchIdentity) -> Sequence[Sink]:
        nonlocal history
        assert folder == bench.folder
        assert identity == prepare(read_target(str(bench.plan)), Consent()).identity
        history = rows
        return (Looking(),)

    config = WatchConfig(plan=str(bench.plan))
    watch = Watch(config, open_sinks=opened, open_measurer=bench._measurer, look=lambda device: ())
    watch.run()
    assert seen == [1]


@pytest.mark.parametrize(
    ("plan", "output"), [("plan.json", "s3://bucket/watch"), ("s3://bucket/watch/best_plan.json", None)]
)
def test_a_bucket_is_no_place_for_a_watch(plan: str, output: str | None) -> None:
    config = WatchConfig(plan=plan, output_dir=output)
    with pytest.raises(InvalidValueError, match="keeps its history on this machine, not in 's3://bucket/watch"):
        Watch(config, open_sinks=lambda folder, history, identity: ()).run()


def test_without_ruptures_it_says_what_to_install(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = bench.once()
    assert str(error) == (
        f"kvray watch needs ruptures, which is not installed. Install it: {Extra.WATCH.install_command}"
    )


def test_other_weights_than_the_plans_are_refused(bench: Bench) -> None:
    write_plan(bench.plan, revision="another")
    error = bench.once()
    assert isinstance(error, ResultsError)
    assert "'fake:ok' has other weights now" in str(error)


def test_a_damaged_history_is_one_line_and_is_gone_on_with(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.once(3)
    damaged = sorted((bench.folder / "observations").iterdir())[1]
    damaged.write_bytes(b"no Parquet")
    with caplog.at_level(logging.WARNING, "kvray.watch"):
        assert bench.once() is None
    assert len([one for one in caplog.records if "is damaged and is left out" in one.getMessage()]) == 1
    assert len(bench.rows) == 3
