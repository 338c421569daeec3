"""A running sweep merges the files of its trials: nothing is lost or counted twice, whenever it is killed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from manifests import RUN_ID
from test_keeper import MANIFEST
from test_many_files import result_of

from kvray.record import TrialResult
from kvray.store import merging, tables
from kvray.store.files import ResultsFiles
from kvray.store.keeper import RecordKeeper
from kvray.store.parquet import ResultsStore, records_sha256

RESULTS = [result_of(number) for number in range(7)]
MERGED_AT = 3
RESULTS[4] = TrialResult(record=RESULTS[4].record)  # one that failed before its first run


class KilledError(BaseException):
    """Stands for the end of the process: nothing of kvray catches it."""


@pytest.fixture(autouse=True)
def _merged_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "MERGED_AT", MERGED_AT)


def keeper_of(folder: Path) -> RecordKeeper:
    store = ResultsStore(folder)
    store.write_manifest(MANIFEST)
    return RecordKeeper(store, MANIFEST)


def names(folder: Path, table: str) -> list[str]:
    return sorted(path.name for path in (folder / table / f"run_id={RUN_ID}").iterdir())


def again(number: int, **changes: Any) -> TrialResult:
    """A trial that is measured anew, later."""
    old = RESULTS[number]
    record = old.record.with_(message="again", ended_at=dt.datetime(2026, 1, 2, tzinfo=dt.UTC))
    return TrialResult(**{"record": record, "runs": old.runs[:4], **changes})


def test_every_few_trials_are_merged_and_read_as_before_by_kvray_and_by_duckdb(tmp_path: Path) -> None:
    keeper = keeper_of(tmp_path)
    for result in RESULTS:
        keeper.keep(result)
    alone = f"{RESULTS[-1].record.trial_id}.parquet"
    for table in ("trials", "runs"):
        assert names(tmp_path, table) == sorted([alone, "part-1.parquet", "part-2.parquet"])
    store = keeper.settle()
    assert store.read(RUN_ID) == RESULTS
    pattern = str(tmp_path / "trials" / "*" / "*.parquet")
    counted = duckdb.sql(f"select count(*), count(distinct trial_id) from '{pattern}'").fetchall()
    assert counted == [(len(RESULTS), len(RESULTS))]
    digest = records_sha256(store.read(RUN_ID))
    store.compact(RUN_ID)
    assert names(tmp_path, "trials") == names(tmp_path, "runs") == ["part-0.parquet"]
    assert store.read(RUN_ID) == RESULTS
    assert records_sha256(store.read(RUN_ID)) == digest


def test_a_large_table_is_read_column_by_column_and_holds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = keeper_of(tmp_path)
    for result in RESULTS:
        keeper.keep(result)
    keeper.settle().compact(RUN_ID)
    monkeypatch.setattr(tables, "_MANY_ROWS", 1)
    assert ResultsStore(tmp_path).read(RUN_ID) == RESULTS


@pytest.mark.parametrize("lost_runs", [False, True], ids=["with runs", "without runs"])
@pytest.mark.parametrize("compacted", [False, True], ids=["killed before", "interrupted before"])
def test_a_trial_measured_again_replaces_the_merged_one(tmp_path: Path, compacted: bool, lost_runs: bool) -> None:
    first = keeper_of(tmp_path)
    for result in RESULTS[:4]:
        first.keep(result)
    if compacted:
        first.settle().compact(RUN_ID)
    second = keeper_of(tmp_path)
    replaced = again(1, **({"runs": ()} if lost_runs else {}))
    for result in (replaced, *RESULTS[4:]):
        second.keep(result)
    expected = [RESULTS[0], replaced, *RESULTS[2:]]
    assert ResultsStore(tmp_path).read(RUN_ID) == expected
    ResultsStore(tmp_path).compact(RUN_ID)
    assert ResultsStore(tmp_path).read(RUN_ID) == expected


def test_runs_that_were_left_without_their_trial_do_not_come_back(tmp_path: Path) -> None:
    store = ResultsStore(tmp_path)
    store.append(RESULTS[1])
    store.paths(RUN_ID).trial_file(RESULTS[1].record.trial_id).unlink()  # killed between its two files
    store.compact(RUN_ID)
    without = TrialResult(record=RESULTS[1].record)
    keeper = keeper_of(tmp_path)
    for result in (RESULTS[0], without, *RESULTS[2:]):
        keeper.keep(result)
    assert store.read(RUN_ID) == [RESULTS[0], without, *RESULTS[2:]]


def killed_at(monkeypatch: pytest.MonkeyPatch, operation: int, act: Callable[[], None]) -> bool:
    """Whether `act` was ended before it wrote or deleted its file number `operation`."""
    left = [operation]

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def one_more(*args: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
            real(*args)

        return one_more

    with monkeypatch.context() as patch:
        for name in ("write", "delete"):
            patch.setattr(ResultsFiles, name, counted(getattr(ResultsFiles, name)))
        try:
            act()
        except KilledError:
            return True
    return False


@pytest.mark.slow
def test_whenever_it_is_killed_every_trial_that_was_kept_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each file that a sweep with a merge and its end write or delete; then resumed."""
    monkeypatch.setattr(merging, "MERGED_AT", 2)
    first, last = RESULTS[:3], RESULTS[:4]
    for operation in range(1000):
        folder = tmp_path / str(operation)
        kept: list[TrialResult] = []

        def sweep(folder: Path = folder, kept: list[TrialResult] = kept) -> None:
            keeper = keeper_of(folder)
            for result in (*first, again(1)):
                keeper.keep(result)
                kept.append(result)
            keeper.settle().compact(RUN_ID)

        was_killed = killed_at(monkeypatch, operation, sweep)
        there = {one.record.trial_id: one for one in ResultsStore(folder).read(RUN_ID)}
        for one in kept:
            found, same = there[one.record.trial_id], [one, again(1) if one == first[1] else one]
            assert found.record in [other.record for other in same], operation
            assert found.runs in [other.runs for other in same], operation
        resumed = keeper_of(folder)
        for result in (one for one in last if one.record.trial_id not in there):
            resumed.keep(result)
        resumed.settle().compact(RUN_ID)
        everything = ResultsStore(folder).read(RUN_ID)
        assert [one.record.trial_id for one in everything] == [one.record.trial_id for one in last], operation
        assert names(folder, "trials") == names(folder, "runs") == ["part-0.parquet"]
        if not was_killed:
            assert everything[1] == again(1)
            break
    assert operation > 20
