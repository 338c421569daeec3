"""What a sweep has measured is kept, wherever it can be written."""

from __future__ import annotations

import logging
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest
from manifests import RUN_ID, plain_manifest
from typing_extensions import override

import kvray.store.keeper as keeping
from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.errors import OutputError, ResultsError
from kvray.record import Role, TrialRecord, TrialResult, TrialStatus
from kvray.store.claim import claimed_sweep
from kvray.store.fingerprint import SweepFingerprint
from kvray.store.keeper import RecordKeeper
from kvray.store.manifest import SweepAttempt
from kvray.store.parquet import ResultsStore, TrialFiles
from kvray.tuning.outcome import interruption

MANIFEST = plain_manifest()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    ResultsStore(tmp_path / "out").write_manifest(MANIFEST)
    return tmp_path / "out"


def keeper_of(folder: Path) -> RecordKeeper:
    return RecordKeeper(ResultsStore(folder), MANIFEST)


def record(name: str, status: TrialStatus = TrialStatus.OK, dtype: DType = DType.FLOAT32) -> TrialRecord:
    candidate = Candidate(
        engine="fake", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=dtype, batch_size=1
    )
    return TrialRecord.of(
        candidate, run_id=RUN_ID, trial_id=name, role=Role.SEARCH, model_id="m", profile="ci-micro", status=status
    )


def keep(keeper: RecordKeeper, *names: str) -> None:
    for name in names:
        keeper.keep(TrialResult(record=record(name)))


def there(folder: Path) -> set[str]:
    return {one.record.trial_id for one in ResultsStore(folder).read(RUN_ID)}


def block(path: Path) -> None:
    """A file where a folder is needed: nothing below it can be written, by root neither."""
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def second_of(folder: Path) -> Path:
    return folder.parent / "cache" / "rescued" / RUN_ID


def test_a_healthy_disk_gets_every_record_at_once_and_no_second_place(folder: Path) -> None:
    keeper = keeper_of(folder)
    keep(keeper, "a")
    assert there(folder) == {"a"}
    keeper.keep_unlaunched([record("u", TrialStatus.SKIPPED, DType.FLOAT16)])
    assert there(folder) == {"a", "u"}
    assert keeper.settle().paths(RUN_ID).root == folder
    assert not keeper.has_moved
    assert not second_of(folder).parent.exists()


def test_records_of_earlier_attempts_go_to_the_second_place_too(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(keeper_of(folder), "earlier")
    keeper = keeper_of(folder)
    (folder / ".partial").rmdir()
    block(folder / ".partial")
    with caplog.at_level(logging.WARNING, logger="kvray.store"):
        keep(keeper, "a", "b")
    assert there(second_of(folder)) == {"earlier", "a", "b"}
    assert len(caplog.messages) == 1, "said once"
    assert "Measuring goes on; what cannot be written is kept also in" in caplog.messages[0]
    assert keeper.settle().paths(RUN_ID).root == second_of(folder)
    assert keeper.has_moved
    assert f"kvray rank {second_of(folder)} --run {RUN_ID}" in str(keeper.moved())


def test_what_could_not_be_written_is_once_it_can_be(folder: Path) -> None:
    keeper = keeper_of(folder)
    block(folder / ".partial")
    keep(keeper, "a")
    (folder / ".partial").unlink()
    keep(keeper, "b")
    assert there(folder) == {"a", "b"}
    assert keeper.settle().paths(RUN_ID).root == folder
    assert not second_of(folder).exists()


def test_a_second_place_that_fails_gives_way_to_a_third(folder: Path) -> None:
    keeper = keeper_of(folder)
    block(folder / ".partial")
    block(second_of(folder).parent)
    keep(keeper, "a")
    third = folder.parent / "tmp" / "kvray-rescued" / RUN_ID
    assert there(third) == {"a"}
    assert keeper.settle().paths(RUN_ID).root == third


def test_records_that_lie_nowhere_are_said_to_be_lost(folder: Path) -> None:
    keeper = keeper_of(folder)
    keep(keeper, "a")
    block(folder / ".partial")
    block(folder.parent / "cache")
    block(folder.parent / "tmp")
    keep(keeper, "b", "c")
    assert {one.record.trial_id for one in keeper.results} == {"a", "b", "c"}
    with pytest.raises(OutputError, match="No other place could be written either: 2 of 3 records are lost"):
        keeper.settle()


def test_a_file_that_was_taken_away_is_written_again_at_the_end(folder: Path) -> None:
    keeper = keeper_of(folder)
    keep(keeper, "a", "b")
    ResultsStore(folder).paths(RUN_ID).trial_file("a").unlink()
    keeper.settle()
    assert there(folder) == {"a", "b"}


def test_a_folder_that_vanished_is_written_anew(folder: Path) -> None:
    keeper = keeper_of(folder)
    keeper.keep_unlaunched([record("u", TrialStatus.REJECTED, DType.FLOAT16)])
    keep(keeper, "a")
    shutil.rmtree(folder)
    keep(keeper, "b")
    assert there(folder) == {"a", "b", "u"}
    assert ResultsStore(folder).read_manifest(RUN_ID) == MANIFEST


def test_reports_that_cannot_be_written_move_everything(folder: Path) -> None:
    keeper = keeper_of(folder)
    keep(keeper, "a")
    assert not keeper.has_moved
    keeper.settle()
    place = keeper.move(OutputError("Cannot write 'report.html': No space left on device."))
    assert place.paths(RUN_ID).root == second_of(folder)
    assert there(second_of(folder)) == {"a"}
    assert str(keeper.moved()).startswith("Cannot write 'report.html': No space left on device. The sweep was measured")


def test_a_sweep_that_was_broken_off_is_not_said_to_have_come_to_its_end(folder: Path) -> None:
    attempt = SweepAttempt(
        started_at=MANIFEST.created_at,
        kvray_version="0.1.0",
        fingerprint_id="0" * 8,
        fingerprint=SweepFingerprint(),
    )
    keeper = RecordKeeper(ResultsStore(folder), MANIFEST.model_copy(update={"attempts": (attempt,)}))
    block(folder / ".partial")
    keep(keeper, "a")
    keeper.settle()
    assert "The sweep was broken off; what it had measured is in" in str(keeper.moved())
    assert f"go on with --output {second_of(folder)} --resume {RUN_ID}." in str(keeper.moved())
    keeper.end_attempt()
    keeper.settle()
    assert "The sweep was measured to its end" in str(keeper.moved())
    assert ResultsStore(second_of(folder)).read_manifest(RUN_ID).is_complete


@pytest.mark.parametrize("what", [".", ".partial"])
def test_a_folder_that_is_written_anew_is_claimed_anew(folder: Path, what: str) -> None:
    store = ResultsStore(folder)
    with claimed_sweep(store, RUN_ID) as claim:
        keeper = RecordKeeper(store, MANIFEST, claim)
        shutil.rmtree(folder / what)
        keep(keeper, "a")
        with pytest.raises(ResultsError, match="is being measured already, by process"), claimed_sweep(store, RUN_ID):
            raise AssertionError("claimed twice")
    with claimed_sweep(store, RUN_ID):
        assert there(folder) == {"a"}


def test_what_another_process_claimed_meanwhile_is_left_to_it_and_the_sweep_goes_to_a_second_place(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = ResultsStore(folder)
    with claimed_sweep(store, RUN_ID) as claim:
        keeper = RecordKeeper(store, MANIFEST, claim)
        store.paths(RUN_ID).lock.unlink()
        with claimed_sweep(store, RUN_ID):
            keep(keeper, "a")
            assert there(folder) == set()
            assert there(second_of(folder)) == {"a"}
            assert f"Sweep '{RUN_ID}' is being measured already, by process" in caplog.text
        keep(keeper, "b")
        assert there(folder) == {"a", "b"}


class SlowStore(ResultsStore):
    """Writes a trial when it is let."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.writes, self.may_write = threading.Event(), threading.Event()

    @override
    def append(self, result: TrialResult) -> TrialFiles:
        self.writes.set()
        assert self.may_write.wait(30)
        return super().append(result)


def test_a_trial_is_told_of_once_it_is_written_and_nobody_waits_for_that(folder: Path) -> None:
    store, told = SlowStore(folder), list[set[str]]()
    keeper = RecordKeeper(store, MANIFEST)
    keeper.keep_soon(TrialResult(record=record("a")), lambda: told.append(there(folder)))
    assert store.writes.wait(30)
    keeper.tell_written()
    assert (told, there(folder)) == ([], set())
    store.may_write.set()
    keeper.catch_up()
    assert told == [{"a"}]
    keeper.tell_written()
    assert told == [{"a"}], "told once"


def test_at_most_one_trial_is_not_written_yet(folder: Path) -> None:
    keeper, told = keeper_of(folder), list[str]()
    for number, name in enumerate("abc"):
        keeper.keep_soon(TrialResult(record=record(name)), partial(told.append, name))
        assert told == list("abc"[:number]), "those before it"
        assert there(folder) >= set(told)
    keeper.settle()
    assert (told, there(folder)) == (["a", "b", "c"], {"a", "b", "c"})


def test_a_trial_that_could_not_be_written_is_told_of_as_well(folder: Path) -> None:
    keeper, told = keeper_of(folder), list[str]()
    for place in (folder / ".partial", folder.parent / "cache", folder.parent / "tmp"):
        block(place)
    keeper.keep_soon(TrialResult(record=record("a")), lambda: told.append("a"))
    keeper.catch_up()
    assert told == ["a"]


def test_ctrl_c_while_the_trial_before_is_waited_for_loses_none(folder: Path) -> None:
    keeper_of(folder).keep(TrialResult(record=record("b", TrialStatus.OOM)))
    keeper = keeper_of(folder)

    def interrupted() -> None:
        raise KeyboardInterrupt

    keeper.keep_soon(TrialResult(record=record("a")), interrupted)
    with pytest.raises(KeyboardInterrupt):
        keeper.keep_soon(TrialResult(record=record("b")), lambda: None)
    keeper.settle()
    statuses = {one.record.trial_id: one.record.status for one in ResultsStore(folder).read(RUN_ID)}
    assert statuses == {"a": TrialStatus.OK, "b": TrialStatus.OK}, "the one that was to replace a failure, too"


def test_trials_that_lie_in_no_folder_at_all_are_counted_as_unwritten(folder: Path) -> None:
    keeper = keeper_of(folder)
    block(folder / ".partial")
    keep(keeper, "a")
    assert keeper.unwritten == 0, "it is in the second place"
    block(folder.parent / "cache")
    block(folder.parent / "tmp")
    keep(keeper, "b")
    assert keeper.unwritten == 2
    assert "2 trials could not be written there yet." in interruption(keeper).message


class SlowService(SlowStore):
    """Is no file system, so that nobody waits long for it."""

    @property
    @override
    def is_local(self) -> bool:
        return False


def test_what_happens_after_a_trial_that_a_slow_service_was_waited_for_is_told_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_WAIT_S", 0.0)
    store, told = SlowService(folder), list[str]()
    keeper = RecordKeeper(store, MANIFEST)
    keeper.keep_soon(TrialResult(record=record("a")), lambda: told.append("a ended"))
    keeper.when_written(lambda: told.append("b began"))
    assert told == [], "in order"
    keeper.catch_up()
    keeper.when_written(lambda: told.append("c began"))
    assert told == ["a ended", "b began", "c began"]
    assert there(folder) == set()
    store.may_write.set()
    keeper.settle()
    assert there(folder) == {"a"}


def test_a_second_place_that_a_sweep_goes_on_in_is_not_given_up_as_one(folder: Path) -> None:
    store = ResultsStore(second_of(folder))
    store.write_manifest(MANIFEST)
    with claimed_sweep(store, RUN_ID) as claim:
        keeper = RecordKeeper(store, MANIFEST, claim)
        store.paths(RUN_ID).lock.unlink()
        with claimed_sweep(store, RUN_ID):
            keep(keeper, "a")
        keep(keeper, "b")
        assert keeper.settle().paths(RUN_ID).root == second_of(folder)
    assert there(second_of(folder)) == {"a", "b"}


def test_a_folder_that_lacks_records_is_not_said_to_hold_a_whole_sweep(folder: Path) -> None:
    attempt = SweepAttempt(
        started_at=MANIFEST.created_at,
        kvray_version="0.1.0",
        fingerprint_id="0" * 8,
        fingerprint=SweepFingerprint(),
    )
    begun = MANIFEST.model_copy(update={"attempts": (attempt,)})
    ResultsStore(folder).write_manifest(begun)
    keeper = RecordKeeper(ResultsStore(folder), begun)
    keep(keeper, "a")
    shutil.rmtree(folder / "trials")
    (folder / "trials").touch()  # manifests can be written, records cannot
    keep(keeper, "b")
    keeper.end_attempt()
    assert keeper.settle().paths(RUN_ID).root == second_of(folder)
    assert ResultsStore(second_of(folder)).read_manifest(RUN_ID).is_complete
    assert not ResultsStore(folder).read_manifest(RUN_ID).is_complete
