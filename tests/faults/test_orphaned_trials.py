"""A sweep or a slot that ends in the middle of a trial: the trial's children, daemons, files and memory end with it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from drivers import FAKE, Driver
from test_lost_slots import kill_slots, slots_of

from kvray.trial.warden import used_inodes

GONE_WITHIN_S = 5.0
ONE = (*FAKE, "--confirm", "0", "--cache", "dynamic", "--attention", "sdpa", "--dtype", "float32")
SHARED_MEMORY = Path("/dev/shm")
LITTER = "=children,=daemon,=files,=shm"
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
        folders = {"KVRAY_CACHE": str(tmp_path / "cache"), "TMPDIR": str(temporary), "RAY_TMPDIR": "/tmp"}
        started.append(Driver(*arguments, "--output", tmp_path / "out", **folders))
        return started[-1]

    yield start
    for driver in started:
        driver.end()


class Trial:
    """A running trial that has left all its litter."""

    def __init__(self, driver: Driver) -> None:
        deadline = time.monotonic() + 30
        self.processes: list[psutil.Process] = []
        self._shared: set[int] = set()
        while time.monotonic() < deadline and not (len(self.processes) >= 3 and len(self._shared) >= 2):
            time.sleep(0.1)
            self.processes = [
                child
                for slot in slots_of(driver)
                for server in slot.children()
                if "forkserver" in " ".join(server.cmdline())
                for child in server.children(recursive=True)
                if child.status() != psutil.STATUS_ZOMBIE
            ]
            self._shared = used_inodes(SHARED_MEMORY, [one.pid for one in self.processes])
        assert len(self.processes) >= 3, "the measurement process, its child, its daemon"
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
    assert os.listdir(temporary) == []


@pytest.mark.parametrize("end", END)
def test_a_driver_killed_in_a_trial_leaves_nothing_of_it(tune: Tune, temporary: Path, end: str) -> None:
    sweep = tune(f"fake:{LITTER},={end}", *ONE)
    sweep.wait_for("start ")
    trial = Trial(sweep)
    sweep.kill()
    assert sweep.orphans(GONE_WITHIN_S) == []
    assert trial.left() == []
    assert os.listdir(temporary) == []


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
