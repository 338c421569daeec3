"""A results folder that fills up, turns read-only or vanishes under a sweep: real file systems of a few MiB."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drivers import FAKE, Driver, recorded

from kvray.cli.app import run
from kvray.errors import OutputError
from kvray.record import TrialResult, TrialStatus
from kvray.store.files import ResultsFiles
from kvray.store.history import WatchHistory
from kvray.store.parquet import ResultsStore

Tune = Callable[..., Driver]
GRID = ("fake:eager=slow", *FAKE, "--search", "grid", "--confirm", "0", "--cache", "dynamic", "--dtype", "float32")
"""Three candidates, each measured once; the second takes seconds."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The results folder, on a file system of its own."""
    folder = tmp_path / "out"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no right to mount a file system: {mounted.stderr.strip()}")
    yield folder
    while os.path.ismount(folder):
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def tune(tmp_path: Path) -> Iterator[Tune]:
    """Start `kvray tune` with its results in `tmp_path / "out"`, its cache and temporary files beside it."""
    started: list[Driver] = []
    (tmp_path / "t").mkdir()

    def start(*arguments: str, **elsewhere: str) -> Driver:
        folders = {"KVRAY_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "t"), **elsewhere}
        started.append(Driver(*GRID, *arguments, "--output", tmp_path / "out", **folders))
        return started[-1]

    yield start
    for driver in started:
        driver.end()


def fill(disk: Path) -> Path:
    """Leave no room at all; returns what takes it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(disk).free == 0
    return ballast


def said(driver: Driver, text: str) -> bool:
    return any(text in line for line in driver.lines)


def all_three(results: dict[str, TrialResult]) -> bool:
    return [one.record.status for one in results.values()] == [TrialStatus.OK] * 3


@pytest.mark.parametrize("how", ["full", pytest.param("read-only", marks=pytest.mark.slow)])
def test_what_cannot_be_written_goes_to_a_second_place_and_the_sweep_goes_on(
    how: str, tune: Tune, disk: Path, tmp_path: Path
) -> None:
    sweep = tune()
    sweep.wait_for("ok ")
    if how == "full":
        fill(disk)
    else:
        # On top, because a file system with a file open for writing cannot be told to be read-only.
        subprocess.run(["mount", "-o", "bind,ro", disk, disk], check=True)
    assert sweep.wait() == 7, sweep.lines
    reason = {"full": "No space left on device", "read-only": "Read-only file system"}[how]
    assert said(sweep, f"warning: Cannot write '{disk}")
    assert said(
        sweep, f"{reason}. Measuring goes on; what cannot be written is kept also in '{tmp_path}/cache/rescued/"
    )
    (second,) = (tmp_path / "cache" / "rescued").iterdir()
    last = sweep.lines[-1]
    assert reason in last
    assert f"all of it, with plan and reports, is in '{second}'. See it with kvray rank {second} --run " in last
    assert all_three(recorded(second))
    assert (second / "reports" / second.name / "best_plan.json").is_file()
    written = recorded(disk, second.name)
    assert 1 <= len(written) < 3
    assert all(recorded(second)[name] == one for name, one in written.items())


@pytest.mark.slow  # what it shows of the store is in tests/unit/store/test_keeper.py
def test_a_disk_that_has_room_again_gets_everything(tune: Tune, disk: Path, tmp_path: Path) -> None:
    sweep = tune()
    sweep.wait_for("ok ")
    ballast = fill(disk)
    sweep.wait_for("Measuring goes on")
    ballast.unlink()
    assert sweep.wait() == 0, sweep.lines
    assert said(sweep, f"Everything could be written to '{disk}' after all.")
    assert all_three(recorded(disk))
    assert list((tmp_path / "cache" / "rescued").iterdir()) == []


@pytest.mark.slow  # a whole sweep; the keeper has a unit test
def test_a_folder_that_vanishes_is_written_anew(tune: Tune, tmp_path: Path) -> None:
    sweep = tune()
    sweep.wait_for("ok ")
    shutil.rmtree(tmp_path / "out")
    assert sweep.wait() == 0, sweep.lines
    assert said(sweep, f"Results folder '{tmp_path}/out' is gone or was emptied; this sweep is written there anew.")
    assert all_three(recorded(tmp_path / "out"))
    store = ResultsStore(tmp_path / "out")
    assert store.paths(store.latest_run_id()).report_html.is_file()


@pytest.mark.slow  # a whole sweep; the keeper has a unit test
def test_where_all_lies_on_one_disk_that_fills_the_loss_and_the_best_are_said(tune: Tune, disk: Path) -> None:
    (disk / "t").mkdir()
    sweep = tune(KVRAY_CACHE=str(disk / "cache"), TMPDIR=str(disk / "t"))
    sweep.wait_for("ok ")
    fill(disk)
    assert sweep.wait() == 7, sweep.lines
    assert said(sweep, "Measuring goes on; what cannot be written is kept in memory only.")
    lost = r"No other place could be written either: [12] of 3 records are lost\. The best measured was dynamic/"
    assert re.search(lost, sweep.lines[-1])


def test_a_watch_finds_out_before_it_measures_that_an_observation_has_no_room(disk: Path) -> None:
    history = WatchHistory(disk / "watch")
    history.check_writable()
    history.check_room()
    with fill(disk).open("r+b") as ballast:
        ballast.truncate(ballast.seek(0, os.SEEK_END) - 16 * 1024)
    history.check_writable()
    full = r"No space left on device. Make room there, or choose another folder with --output\."
    with pytest.raises(OutputError, match=rf"Cannot write to results folder .*: {full}"):
        history.check_room()
    with pytest.raises(OutputError, match=rf"Cannot write .*x': {full}"):
        ResultsFiles(disk).write(disk / "x", b"x" * 2**20)
    assert [path.name for path in (disk / "watch").rglob("*") if path.is_file()] == []


def test_no_example_is_left_where_it_does_not_fit(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(disk)
    assert run(["batch", "--init", str(disk / "models.yaml")], verbose=False) == 7
    assert f"Cannot write '{disk / 'models.yaml'}': No space left on device." in capsys.readouterr().err
    assert not (disk / "models.yaml").exists()
