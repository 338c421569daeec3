"""The history of a watch: what is read back, and what damage, strangers and a kill in the middle of a merge cost."""

from __future__ import annotations

import datetime as dt
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
from observations import plain_observation

from kvray.errors import ResultsError
from kvray.store.history import MERGED_AT, Observation, WatchHistory
from kvray.store.skipped import MOST_SKIPPED, SKIPPED, SkippedTurn, skipped_bytes

START = dt.datetime(2026, 3, 2, 6, tzinfo=dt.UTC)
ROW = plain_observation(
    observed_at=START,
    processes=2,
    ttft_ms=12.5,
    ttft_ms_each=(12.0, 13.0),
    engine_versions={"torch": "2.13.0"},
    variables={"OMP_NUM_THREADS": "1"},
    trial_ids=("t1", "t2"),
    message="\udcff is no text",
)


def row(number: int, **changes: Any) -> Observation:
    at = START + dt.timedelta(hours=6 * number)
    return replace(ROW, observation_id=f"{at:%Y%m%dT%H%M%S}Z-{number:04}", observed_at=at, **changes)


def filled(folder: Path, count: int) -> WatchHistory:
    history = WatchHistory(folder)
    for number in range(count):
        history.append(row(number))
    return history


def test_what_was_appended_is_read_back_oldest_first(tmp_path: Path) -> None:
    history = WatchHistory(tmp_path)
    history.append(row(1))
    history.append(row(0))
    assert history.read("w1") == [replace(row(number), message="? is no text") for number in (0, 1)]


def test_a_folder_without_history_has_no_observations(tmp_path: Path) -> None:
    assert WatchHistory(tmp_path / "nothing").read("w1") == []


def test_many_files_are_merged_and_duckdb_reads_them_as_they_lie(tmp_path: Path) -> None:
    history = filled(tmp_path, MERGED_AT + 2)
    history.append(row(MERGED_AT + 2, ttft_ms=None))
    history.tidy()
    assert [path.name for path in history.folder.iterdir()] == ["part-1.parquet"]
    history.append(row(MERGED_AT + 3))
    history.tidy()
    assert len(history.read("w1")) == MERGED_AT + 4
    query = f"SELECT count(*), epoch(min(observed_at)), max(ttft_ms) FROM '{history.folder}/*.parquet'"
    assert duckdb.sql(query).fetchall() == [(MERGED_AT + 4, START.timestamp(), 12.5)]


def test_a_merge_that_was_killed_is_finished_by_the_next(tmp_path: Path) -> None:
    history = filled(tmp_path, MERGED_AT)
    singles = {path.name: path.read_bytes() for path in history.folder.iterdir()}
    history.tidy()
    for name, data in list(singles.items())[:5]:  # killed before all single files were deleted
        (history.folder / name).write_bytes(data)
    assert len(history.read("w1")) == MERGED_AT
    history.tidy()
    assert [path.name for path in history.folder.iterdir()] == ["part-1.parquet"]


def test_a_half_written_file_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    history = filled(tmp_path, 1)
    left = tmp_path / ".partial" / f"{tmp_path.name}.observations~x.parquet.abc"
    left.write_bytes(b"half")
    history.tidy()
    assert not left.exists()


@pytest.mark.parametrize("damage", [b"", b"PAR1 and no more PAR1", None])
def test_a_damaged_file_is_one_line_and_costs_no_other(
    tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    history = filled(tmp_path, 3)
    damaged = sorted(history.folder.iterdir())[1]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with caplog.at_level(logging.WARNING, "kvray.watch"):
        assert len(history.read("w1")) == 2
        assert len(history.read("w1")) == 2
    assert len(caplog.records) == 1
    assert "is damaged and is left out" in caplog.text
    history.tidy()
    assert damaged.exists()


def test_the_history_of_another_watch_is_refused(tmp_path: Path) -> None:
    history = filled(tmp_path, 2)
    with pytest.raises(ResultsError, match=r"holds the history of another watch: dynamic-1a2b of tiny with profile"):
        history.read("w2")


def test_a_newer_history_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = filled(tmp_path, 1)
    monkeypatch.setattr("kvray.store.history.HISTORY_VERSION", 0)
    with pytest.raises(ResultsError, match="is of history version 1, this kvray reads up to 0"):
        history.read("w1")


def test_an_older_history_lacks_columns_and_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    history = filled(tmp_path, 1)
    (path,) = history.folder.iterdir()
    table = pq.read_table(path).drop_columns(["load", "ttft_ms_each"])
    pq.write_table(table.append_column("later", pa.array(["x"])), path)
    (found,) = history.read("w1")
    assert (found.ttft_ms, found.ttft_ms_each, found.load) == (12.5, (), None)


def test_skipped_turns_are_kept_beside_the_observations(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history = filled(tmp_path, 1)
    assert history.skipped() == []
    turns = [SkippedTurn(at=START + dt.timedelta(hours=hours), reason=f"busy {hours}") for hours in (1, 2)]
    for turn in turns:
        history.append_skipped(turn)
    assert history.skipped() == turns
    assert history.read("w1") == [replace(row(0), message="? is no text")]
    assert duckdb.sql(f"SELECT count(*), max(reason) FROM '{tmp_path / SKIPPED}'").fetchall() == [(2, "busy 2")]
    (tmp_path / SKIPPED).write_bytes(b"no Parquet")
    with caplog.at_level(logging.WARNING, "kvray.watch"):
        assert (history.skipped(), history.skipped()) == ([], [])
    assert len([one for one in caplog.records if "is damaged and is left out" in one.getMessage()]) == 1
    history.append_skipped(turns[0])
    assert history.skipped() == turns[:1]


def test_of_many_skipped_turns_the_newest_are_kept(tmp_path: Path) -> None:
    many = [SkippedTurn(at=START + dt.timedelta(minutes=number), reason="\udcff") for number in range(MOST_SKIPPED)]
    (tmp_path / SKIPPED).write_bytes(skipped_bytes(many))
    history = WatchHistory(tmp_path)
    history.append_skipped(SkippedTurn(at=START + dt.timedelta(days=9), reason="busy"))
    found = history.skipped()
    assert (len(found), found[0].at, found[0].reason) == (MOST_SKIPPED, many[1].at, "?")
    assert found[-1].reason == "busy"
