"""How a sweep ends that is broken off while its records are written. In place of Ray, the test runs the trials."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from sweep_without_ray import NoRay, one_trial

from kvray.candidate import DeviceType
from kvray.config import TuneConfig
from kvray.errors import SweepError, SweepInterruptedError
from kvray.record import TrialResult, TrialStatus
from kvray.store.keeper import RecordKeeper
from kvray.store.parquet import ResultsStore, TrialFiles
from kvray.sweep.batch import QueuedSweep
from kvray.sweep.session import RaySession
from kvray.tuning import search
from kvray.tuning.result import info_of
from kvray.tuning.search import TuningSearch
from kvray.workload import get_profile

Trials = Callable[[QueuedSweep], None]


def measure(folder: Path, monkeypatch: pytest.MonkeyPatch, trials: Trials) -> TuningSearch:
    """A search whose trials are what `trials` makes of its queue."""
    monkeypatch.setenv("KVRAY_CACHE", str(folder / "cache"))
    monkeypatch.setattr(search, "run_sweep", lambda sweep, **_: trials(sweep))
    config = TuneConfig(
        model_id="fake:ok",
        engine="fake",
        device=DeviceType.CPU,
        profile=get_profile("ci-micro"),
        output_dir=folder / "out",
        check_snippet=False,
    )
    return TuningSearch(config=config, ray=cast(RaySession, NoRay()))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SweepError("Ray broke down.")])
def test_where_the_records_are_is_told_as_it_is_when_they_have_been_written(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "out" / ".partial"

    def trials(sweep: QueuedSweep) -> None:
        for leftover in blocked.iterdir():
            leftover.unlink()
        blocked.rmdir()
        blocked.touch()  # nothing can be written
        one_trial(sweep)
        assert sweep.attend is not None
        sweep.attend(True)
        raise error

    settle = RecordKeeper.settle

    def settled(keeper: RecordKeeper) -> ResultsStore:
        assert keeper.has_moved
        blocked.unlink()
        return settle(keeper)

    monkeypatch.setattr(RecordKeeper, "settle", settled)
    with pytest.raises((SweepInterruptedError, SweepError)) as raised:
        measure(tmp_path, monkeypatch, trials).outcome()
    (run_id,) = ResultsStore(tmp_path / "out").run_ids()
    told = str(raised.value)
    assert f"kept in {tmp_path / 'out'}." in told
    assert told.endswith(f"Repeat the command with --resume {run_id} to measure the rest.")


def test_what_the_report_of_a_broken_off_sweep_says_is_known_to_who_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trials(sweep: QueuedSweep) -> None:
        one_trial(sweep)
        raise KeyboardInterrupt

    tuning = measure(tmp_path, monkeypatch, trials)
    assert tuning.written_up is None
    with pytest.raises(SweepInterruptedError):
        tuning.outcome()
    assert tuning.written_up is not None
    sentence = info_of(tuning.written_up).headline.sentence
    assert sentence.startswith("Incomplete (")
    assert sentence in tuning.written_up.paths.report_markdown.read_text(encoding="utf-8")


def test_an_error_of_kvrays_own_leaves_the_trial_that_was_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trials(sweep: QueuedSweep) -> None:
        one_trial(sweep)
        raise ZeroDivisionError("a fault")

    may_write = threading.Event()
    append, finish = ResultsStore.append, RecordKeeper.finish_writing

    def appended(store: ResultsStore, result: TrialResult) -> TrialFiles:
        assert may_write.wait(60)
        return append(store, result)

    def finished(keeper: RecordKeeper) -> None:
        may_write.set()
        finish(keeper)

    monkeypatch.setattr(ResultsStore, "append", appended)
    monkeypatch.setattr(RecordKeeper, "finish_writing", finished)
    with pytest.raises(ZeroDivisionError):
        measure(tmp_path, monkeypatch, trials).outcome()
    store = ResultsStore(tmp_path / "out")
    (run_id,) = store.run_ids()
    assert [one.record.status for one in store.read(run_id) if one.record.status.was_launched] == [TrialStatus.OOM]
