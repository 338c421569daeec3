"""Whole files; what file systems refuse is in tests/faults/test_refusing_file_systems.py."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvray.engines.hugging_face.gguf import _publish
from kvray.files.file_systems import Weakness, has_locks, write_whole


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder from which nothing can be renamed into `tmp_path`."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this machine has one file system only")
    folder = Path(tempfile.mkdtemp(dir=shared))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    for data in (b"one", b"two"):
        assert write_whole(tmp_path / "a", data) == frozenset()
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("a", b"two")]


def test_what_cannot_be_renamed_from_its_folder_is_written_beside_its_place(tmp_path: Path, elsewhere: Path) -> None:
    weak = write_whole(tmp_path / "a", b"one", via=elsewhere / "a.tmp")
    assert Weakness.RENAME not in weak
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("a", b"one")]
    assert list(elsewhere.iterdir()) == []


def test_a_file_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "missing" / "a", b"")


def test_a_local_folder_has_locks(tmp_path: Path) -> None:
    assert has_locks(tmp_path)


def test_a_converted_model_that_cannot_be_renamed_into_place_is_copied(tmp_path: Path, elsewhere: Path) -> None:
    (elsewhere / "model.safetensors").write_bytes(b"weights")
    (elsewhere / "config.json").write_text("{}")
    _publish(elsewhere, tmp_path / "model")
    assert sorted(one.name for one in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_a_converted_model_that_another_process_has_put_there_stays(tmp_path: Path) -> None:
    for name, text in (("staging", "ours"), ("model", "theirs")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    _publish(tmp_path / "staging", tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "theirs"
