"""What is said and cleaned up after a driver that ended without a word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvray.sweep.driver_reaper import fatal_words

DIES = """
import os, sys
from pathlib import Path
from kvray.sweep.driver_reaper import DriverReaper
reaper = DriverReaper(Path(sys.argv[1]), standard_error=2)
{word}
os._exit(1)
"""
LOG = (
    "2026-01-01 00:00:00,000\tERROR tune.py:1 -- as always\n"
    "[2026-01-01 00:00:00,000 W 7 9] gcs_client.cc:210: Failed to get cluster ID\n"
    "[2026-01-01 00:00:01,000 C 7 9] core_worker.cc:1:  The raylet is gone.\n"
    "*** StackTrace Information ***\n"
)


def test_words_with_which_rays_cpp_ends_a_process_are_told_from_others(tmp_path: Path) -> None:
    assert fatal_words(tmp_path) is None
    (tmp_path / "sweep.log").write_text(LOG.replace(" C ", " E "))
    assert fatal_words(tmp_path) is None
    (tmp_path / "sweep.log").write_text(LOG)
    assert fatal_words(tmp_path) == "core_worker.cc:1: The raylet is gone."


def dies(folder: Path, word: str = "") -> str:
    """What is said once a driver with `folder`, and everything that it started, has ended."""
    folder.mkdir()
    (folder / "sweep.log").write_text(LOG)
    command = [sys.executable, "-c", DIES.format(word=word), str(folder)]
    marked = {**os.environ, "TEST_DRIVER": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=marked)
    return done.stderr


@pytest.mark.spawns
def test_a_driver_that_rays_cpp_has_ended_does_not_vanish_without_a_word(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    assert dies(folder) == "kvray: Ray has ended the sweep: core_worker.cc:1: The raylet is gone.\n"
    assert not folder.exists()


@pytest.mark.spawns
def test_the_last_words_that_a_driver_has_left_are_said_with_the_reason_in_place(tmp_path: Path) -> None:
    word = """
for run in ("r1", "r2"):
    reaper.leave_last_words(f"Ray broke down: WHY. Repeat with --resume {run}.", reason="WHY")
"""
    assert dies(tmp_path / "scratch", word) == (
        "kvray: Ray broke down: core_worker.cc:1: The raylet is gone. Repeat with --resume r2.\n"
    )


@pytest.mark.spawns
def test_a_head_that_was_started_anew_is_told_in_plain_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "LOG", LOG.replace("The raylet is gone.", "Unauthenticated: WrongClusterID: x"))
    said = dies(tmp_path / "scratch")
    assert said == "kvray: Ray has ended the sweep: its head was started anew and does not know this sweep\n"


@pytest.mark.spawns
def test_a_driver_that_has_cleaned_up_itself_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    assert dies(folder, "reaper.dismiss()") == ""
    assert folder.exists()


END_A_JOB = """
import contextlib, psutil, signal, time
def reaper_pid():
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if one.environ().get("TEST_DRIVER") == sys.argv[1] and one.pid != os.getpid():
                return one.pid
assert psutil.Process().children() == []
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    os.kill(reaper_pid(), number)
time.sleep(0.1)
{then}
"""


@pytest.mark.spawns
@pytest.mark.parametrize("then", ["", "os.kill(reaper_pid(), signal.SIGKILL); time.sleep(0.1); reaper.keep_logs()"])
def test_what_ends_a_job_ends_no_reaper_and_one_that_was_killed_is_replaced(tmp_path: Path, then: str) -> None:
    folder = tmp_path / "scratch"
    # A driver that says to keep the logs is about to leave a broken Ray, and has said why itself.
    said = dies(folder, END_A_JOB.format(then=then))
    assert said == ("" if then else "kvray: Ray has ended the sweep: core_worker.cc:1: The raylet is gone.\n")
    assert not folder.exists()
