"""The errors that end a sweep."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from manifests import RUN_ID, plain_manifest

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.errors import OutputError, ResultsError, SweepError
from kvray.record import Role, TrialRecord, TrialResult, TrialStatus
from kvray.store.keeper import RecordKeeper
from kvray.store.parquet import ResultsStore
from kvray.tuning.outcome import broken_off, write_up
from kvray.tuning.result import read_measured


class HeadLostError(SweepError):
    """An error with an exit code of its own."""

    exit_code = 99


def test_an_error_that_ends_a_sweep_keeps_its_class_and_so_its_exit_code(tmp_path: Path) -> None:
    manifest = plain_manifest()
    told = broken_off(HeadLostError("The head is gone."), RecordKeeper(ResultsStore(tmp_path), manifest))
    assert type(told) is HeadLostError
    assert told.exit_code == 99
    assert str(told).startswith("The head is gone. The trials that had finished are kept in ")
    assert "--resume 20260101-120000-abcd" in str(told)


def kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> RecordKeeper:
    """One trial in `folder`."""
    monkeypatch.setenv("KVRAY_CACHE", str(folder / "cache"))
    store = ResultsStore(folder / "out")
    store.write_manifest(plain_manifest())
    keeper = RecordKeeper(store, plain_manifest())
    candidate = Candidate(
        engine="fake", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32
    )
    record = TrialRecord.of(
        candidate,
        run_id=RUN_ID,
        trial_id="a",
        role=Role.BASELINE,
        model_id="m",
        profile="ci-micro",
        status=TrialStatus.OOM,
    )
    keeper.keep(TrialResult(record=record))
    return keeper


def test_a_sweep_that_cannot_be_read_back_is_written_up_in_the_second_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = kept(tmp_path, monkeypatch)
    settle = keeper.settle

    def settled() -> ResultsStore:
        store = settle()
        shutil.rmtree(tmp_path / "out" / "trials")
        (tmp_path / "out" / "trials").touch()
        return store

    monkeypatch.setattr(keeper, "settle", settled)
    result = write_up(keeper, plain_manifest().profile, lambda _: None)
    assert [one.record.trial_id for one in result.results] == ["a"]
    assert result.paths.report_markdown.is_relative_to(tmp_path / "cache")
    assert result.paths.report_markdown.is_file()
    assert keeper.has_moved


def test_records_that_cannot_be_merged_are_kept_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> None:
        raise OutputError("Cannot delete 'a.parquet': the service fails at present.")

    keeper = kept(tmp_path, monkeypatch)
    monkeypatch.setattr(ResultsStore, "compact", refused)
    result = write_up(keeper, plain_manifest().profile, lambda _: None)
    assert result.paths.report_markdown.is_relative_to(tmp_path / "out")
    assert not keeper.has_moved
    assert f"The records of sweep {RUN_ID} stay in several files." in caplog.text


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("kvray tune", "it still runs or was interrupted .*If it does not run any more, repeat the kvray tune command"),
        ("kvray batch", "it still runs or was .*, run kvray batch --resume batch-20260101-120000 with the same"),
        (
            "kvray submit tune",
            "no trial had finished when its results were fetched.* repeat kvray jobs fetch later. If it was "
            f"interrupted, repeat the kvray submit tune command with --resume {RUN_ID}",
        ),
    ],
)
def test_where_no_trial_has_ended_yet_the_sweep_may_still_run(command: str, told: str, tmp_path: Path) -> None:
    store = ResultsStore(tmp_path)
    store.write_manifest(plain_manifest().model_copy(update={"command": command}))
    with pytest.raises(ResultsError, match=told):
        read_measured(store, RUN_ID)
