"""A sweep or a slot that ends in the middle of a trial: the trial's children, daemons, files and memory end with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from command_lines import command_line
from drivers import FAKE, Driver, recorded
from test_lost_slots import kill_slots, slots_of

from kvray.record import TrialStatus
from kvray.trial.trial_reaper import used_inodes

GONE_WITHIN_S = 5.0
ONE = (*FAKE, "--confirm", "0", "--cache", "dynamic", "--attention", "sdpa", "--dtype", "float32")
SHARED_MEMORY = Path("/dev/shm")
LITTER = "=server,=children,=daemon,=files,=shm"
Tune = Callable[..., Driver]


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "t"
    folder.mkdir()
    return folder


@pytest.fixture
def tune(tmp_path: Path, temporary: Path) -> Iterator[Tune]:
    """Start `kvray tune` with the folder `temporary` for temporary files; Ray has its own elsewhere."""
    started: list[Driver] = []

    def start(*arguments: str) -> Driver:
        folders = {
            "KVRAY_CACHE": str(tmp_path / "cache"),
            "TMPDIR": str(temporary),
            "RAY_TMPDIR": "/tmp",
        }  # its sockets need a short one
        started.append(Driver(*arguments, "--output", tmp_path / "out", **folders))
        return started[-1]

    yield start
    for driver in started:
        driver.end()


class Trial:
    """A running trial that has left all its litter."""

    def __init__(self, driver: Driver) -> None:
        deadline = time.monotonic() + 240
        self.processes: list[psutil.Process] = []
        self._shared: set[int] = set()
        while time.monotonic() < deadline and not (len(self.processes) >= 4 and len(self._shared) >= 2):
            time.sleep(0.1)
            self.processes = [
                child
                for slot in slots_of(driver)
                for server in slot.children()
                if "forkserver" in " ".join(command_line(server))
                for child in server.children(recursive=True)
                if child.status() != psutil.STATUS_ZOMBIE
            ]
            self._shared = used_inodes(SHARED_MEMORY, [one.pid for one in self.processes])
        assert len(self.processes) >= 4, "the measurement process, its server, its child, its daemon"
        time.sleep(1.0)  # the slot looks twice a second what of the shared memory is the trial's

    def left(self) -> list[object]:
        shared = [path for path in SHARED_MEMORY.iterdir() if path.stat().st_ino in self._shared]
        return [*shared, *(one for one in self.processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE)]

    def wait_until_gone(self) -> None:
        deadline = time.monotonic() + GONE_WITHIN_S
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self.left() == []


END = ("hang", pytest.param("stubborn", marks=pytest.mark.slow))


@pytest.mark.parametrize("end", END)
@pytest.mark.parametrize("presses", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_in_a_trial_leaves_nothing_of_it(tune: Tune, temporary: Path, presses: int, end: str) -> None:
    sweep = tune(f"fake:{LITTER},={end}", *ONE)
    sweep.wait_for("start ")
    trial = Trial(sweep)
    for _ in range(presses):
        sweep.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert sweep.wait() == 130
    trial.wait_until_gone()
    assert sweep.orphans(GONE_WITHIN_S) == []
    assert list(temporary.iterdir()) == []
    assert sweep.ray_sessions() == []


@pytest.mark.slow  # in test_killed_driver a driver is killed too
@pytest.mark.parametrize("end", END)
def test_a_driver_killed_in_a_trial_leaves_nothing_of_it(tune: Tune, temporary: Path, end: str) -> None:
    sweep = tune(f"fake:{LITTER},={end}", *ONE)
    sweep.wait_for("start ")
    trial = Trial(sweep)
    sweep.kill()
    assert sweep.orphans(GONE_WITHIN_S) == []
    assert trial.left() == []
    assert list(temporary.iterdir()) == []
    assert sweep.ray_sessions() == []


@pytest.mark.slow
@pytest.mark.parametrize("end", END)
def test_a_slot_killed_in_a_trial_leaves_nothing_of_it_beside_the_next_attempt(tune: Tune, end: str) -> None:
    sweep = tune(f"fake:{LITTER},={end}", *ONE)
    sweep.wait_for("start ")
    trial = Trial(sweep)
    kill_slots(slots_of(sweep))
    sweep.wait_for("lost ")
    trial.wait_until_gone()
    sweep.wait_for("start ")
    assert trial.left() == []


@pytest.mark.slow
def test_temporary_files_cleared_in_a_sweep_cost_no_trial(tune: Tune, temporary: Path, tmp_path: Path) -> None:
    sweep = tune("fake:eager=slow", *FAKE, "--search", "grid", "--confirm", "0", "--cache", "dynamic")
    sweep.wait_for("start ", times=2)
    for folder in temporary.glob("kvray-*"):
        shutil.rmtree(folder)
    assert sweep.wait() == 0, sweep.lines
    assert {one.record.status for one in recorded(tmp_path / "out").values()} == {TrialStatus.OK}
    assert list(temporary.iterdir()) == []
    assert sweep.ray_sessions() == []


OWNER = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_trial_leftovers import SpawnedAdapter
from test_trial_process import spec_of
from kvray.testing.fake import FakeAdapter
from kvray.trial.process import Launcher, TrialProcess
launcher = Launcher({launcher})
TrialProcess(launcher, spec_of("dynamic=raise"), Path({log!r})).close()
print("one has ended", flush=True)
sys.stdin.readline()
process = TrialProcess(launcher, spec_of("dynamic=children,dynamic=daemon,dynamic=hang"), Path({log!r}))
process.advance()
"""


@pytest.mark.parametrize("launcher", ["FakeAdapter()", "SpawnedAdapter()", "FakeAdapter(), python={python!r}"])
def test_a_reaper_that_was_killed_is_replaced_before_the_next_trial(
    tmp_path: Path, launcher: str, second_python: str
) -> None:
    launcher = launcher.format(python=second_python)
    code = OWNER.format(path=[str(Path(__file__).parent)], launcher=launcher, log=str(tmp_path / "log"))
    environment = {**os.environ, "KVRAY_CACHE": str(tmp_path), "TEST_OWNER": str(tmp_path)}

    def below() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("TEST_OWNER") == str(tmp_path) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def reapers() -> list[psutil.Process]:
        return [one for one in below() if "kvray.trial.trial_reaper" in command_line(one)]

    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdin is not None
        assert owner.stdout.readline() == b"one has ended\n"
        (reaper,) = reapers()
        reaper.kill()
        psutil.wait_procs([reaper], timeout=240)  # until then its pipe takes what it is told
        owner.stdin.write(b"\n")
        owner.stdin.flush()
        deadline = time.monotonic() + 240
        while not (tmp_path / "tmp" / "daemon.pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(below()) >= 5, "owner, reaper, the trial's process, its child, its daemon"
        assert len(reapers()) == 1
        owner.kill()
        owner.wait()
    deadline = time.monotonic() + GONE_WITHIN_S
    while below() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert below() == []
    assert not (tmp_path / "tmp").exists()
