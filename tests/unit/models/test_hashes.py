"""Hashes of weights: remembered until a file changes, and said where they take a while."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from kvray.models import hashes
from kvray.models.hashes import file_sha256, files_sha256, known_sha256


@pytest.fixture(autouse=True)
def memos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hashes"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    return path


def test_a_hash_is_remembered_until_the_file_changes(file: Path, memos: Path) -> None:
    assert known_sha256(file) is None
    first = file_sha256(file)
    assert first == known_sha256(file) == hashlib.sha256(b"one").hexdigest()
    (memo,) = memos.iterdir()

    memo.write_text(json.dumps({"sha256": "ab" * 32}))
    assert file_sha256(file) == "ab" * 32

    file.write_bytes(b"two")  # as long as before
    assert file_sha256(file) == hashlib.sha256(b"two").hexdigest()


def test_a_file_that_takes_anothers_place_and_times_is_hashed_anew(file: Path) -> None:
    file_sha256(file)
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    other = file.with_name("other")
    other.write_bytes(b"two")
    os.utime(other, ns=times)
    other.replace(file)
    assert file.stat().st_mtime_ns == times[1]
    assert file_sha256(file) == hashlib.sha256(b"two").hexdigest()


def test_several_files_keep_their_order(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(9)]
    for path in paths:
        path.write_text(path.name)
    file_sha256(paths[4])
    expected = tuple(hashlib.sha256(path.name.encode()).hexdigest() for path in paths)
    assert files_sha256(paths) == files_sha256(paths) == expected
    assert files_sha256([]) == ()


def test_what_takes_a_while_is_said_once(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="kvray")
    monkeypatch.setattr(hashes, "_WORTH_A_WORD", 3)
    monkeypatch.setattr(hashes, "_SAY_EVERY_S", 0.0)
    file_sha256(file)
    file_sha256(file)
    assert [record.getMessage() for record in caplog.records] == [
        f"reading {file} (0.0 GiB) once, to know the same weights again",
        "0.0 of 0.0 GiB read",
    ]
    file.with_name("small").touch()
    file_sha256(file.with_name("small"))
    assert len(caplog.records) == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"sha256": 3}', '{"sha256": "../../etc"}'])
def test_a_damaged_memo_is_no_obstacle(text: str, file: Path, memos: Path) -> None:
    first = file_sha256(file)
    for memo in memos.iterdir():
        memo.write_text(text)
    assert file_sha256(file) == first


def test_a_cache_that_cannot_be_written_costs_no_more_than_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVRAY_CACHE", str(file / "cache"))
    assert len(file_sha256(file)) == 64
