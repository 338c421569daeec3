"""Real processes: whatever a trial leaves behind is gone when it ends, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
from test_trial_process import ended, spec_of, wait_until_gone

from kvray.engines.base import StartMethod
from kvray.record import TrialStatus
from kvray.testing.fake import FakeAdapter
from kvray.testing.fake_server import HELD_MIB
from kvray.trial.events import RungFinished, TrialEnded
from kvray.trial.leftovers import group
from kvray.trial.log import LIMIT_BYTES
from kvray.trial.memory_watch import MemoryWatch
from kvray.trial.process import Launcher, TrialProcess

Start = Callable[..., TrialProcess]


class SpawnedAdapter(FakeAdapter):
    start_method: ClassVar[StartMethod] = "spawn"


class BuildingAdapter(FakeAdapter):
    """Its native code has a lock beside the log."""

    folder: ClassVar[Path]

    def build_locks(self) -> Sequence[Path]:
        return [lock for lock in [self.folder / "lock"] if lock.exists()]


class ElsewhereAdapter(FakeAdapter):
    """It lives in another environment."""


class SpawnedElsewhereAdapter(SpawnedAdapter):
    """It lives there, and must not be forked from a process that has imported anything."""


@pytest.fixture(scope="module")
def launchers(tmp_path_factory: pytest.TempPathFactory, second_python: str) -> Iterator[dict[str, Launcher]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVRAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        here = {adapter.__name__: Launcher(adapter()) for adapter in (FakeAdapter, SpawnedAdapter, BuildingAdapter)}
        elsewhere = {
            adapter.__name__: Launcher(adapter(), python=second_python)
            for adapter in (ElsewhereAdapter, SpawnedElsewhereAdapter)
        }
        yield {**here, **elsewhere}


@pytest.fixture
def start(launchers: dict[str, Launcher], tmp_path: Path) -> Iterator[Start]:
    started: list[TrialProcess] = []

    def begin(
        commands: str,
        adapter: type[FakeAdapter] = FakeAdapter,
        *,
        timeout_s: float = 240.0,
        memory: MemoryWatch | None = None,
    ) -> TrialProcess:
        spec = spec_of(",".join(f"dynamic={one}" for one in commands.split("+")), timeout_s=timeout_s)
        started.append(TrialProcess(launchers[adapter.__name__], spec, tmp_path / "trial.log", memory=memory))
        return started[-1]

    yield begin
    for process in started:
        process.close()


def is_running(pid: int) -> bool:
    return pid in psutil.pids() and bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    ("adapter", "end"),
    [
        (FakeAdapter, ""),
        (FakeAdapter, "+segv"),
        (FakeAdapter, "+deaf+gil"),
        (SpawnedAdapter, "+segv"),
        (ElsewhereAdapter, ""),
        (ElsewhereAdapter, "+deaf+gil"),
        (SpawnedElsewhereAdapter, "+segv"),
    ],
)
def test_a_process_that_left_its_group_and_parent_is_gone_with_the_trial(
    start: Start, launchers: dict[str, Launcher], tmp_path: Path, adapter: type[FakeAdapter], end: str
) -> None:
    # Only a trial that hangs is ended by the limit; the others must not meet it on a busy machine.
    process = start(f"daemon@load{end}", adapter, timeout_s=2.0 if "gil" in end else 240.0)
    process.advance()
    daemon = int((tmp_path / "tmp" / "daemon.pid").read_text())
    assert is_running(daemon)
    assert os.getpgid(daemon) != process.pid
    assert daemon in launchers[adapter.__name__].tree.members(process.pid), "whose memory counts"
    process.close()
    assert not is_running(daemon)
    assert wait_until_gone(process.pid) == []


@pytest.mark.parametrize(
    ("adapter", "end", "status"),
    [
        (FakeAdapter, "", TrialStatus.OK),
        (FakeAdapter, "+kill", TrialStatus.CRASHED),
        (FakeAdapter, "+deaf+hang", TrialStatus.TIMEOUT),
        (SpawnedAdapter, "+kill", TrialStatus.CRASHED),
        (ElsewhereAdapter, "", TrialStatus.OK),
        (ElsewhereAdapter, "+kill", TrialStatus.CRASHED),
        (SpawnedElsewhereAdapter, "+children+daemon+kill", TrialStatus.CRASHED),
        (SpawnedElsewhereAdapter, "+children+files+shm+thread", TrialStatus.OK),
    ],
)
def test_the_server_in_which_an_engine_computes_is_gone_with_the_trial(
    start: Start, launchers: dict[str, Launcher], adapter: type[FakeAdapter], end: str, status: TrialStatus
) -> None:
    process = start(f"server{end}", adapter, timeout_s=1.0 if status is TrialStatus.TIMEOUT else 240.0)
    servers: set[int] = set()
    while not isinstance(event := process.advance(), TrialEnded):
        servers |= set(launchers[adapter.__name__].tree.members(process.pid)) - {process.pid}
    process.close()
    assert event.status is status
    assert end or len(servers) == 1
    assert wait_until_gone(process.pid) == []
    assert [pid for pid in (*servers, *process.pids) if is_running(pid)] == []
    # What the engine tells itself of this candidate's longest cell is 100.3 MiB.
    assert all(run.peak_mib is not None and run.peak_mib > 100 + HELD_MIB for run in process.runs)
    assert (len(process.runs) > 0) == (status is TrialStatus.OK)


def test_the_end_of_one_trial_leaves_another_alone(start: Start) -> None:
    first, second = start("children"), start("children")
    assert isinstance(second.advance(), RungFinished)
    first.close()
    assert len(group(second.pid)) == 2
    assert isinstance(second.advance(), RungFinished)


@pytest.mark.parametrize("end", ["", "+segv", "+gil"])
def test_temporary_files_are_gone_with_the_trial(start: Start, tmp_path: Path, end: str) -> None:
    process = start(f"files{end}", timeout_s=1.0 if end == "+gil" else 240.0)
    process.advance()
    scratch = tmp_path / "tmp"
    assert len(list(scratch.rglob("*"))) >= 3
    process.close()
    assert not scratch.exists()


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no POSIX shared memory to be seen here")
@pytest.mark.parametrize("end", ["", "+segv"])
def test_shared_memory_is_gone_with_the_trial_and_that_of_others_stays(start: Start, end: str) -> None:
    before = shared_memory()
    process = start(f"shm{end}")
    others = SharedMemory(create=True, size=4096)
    try:
        process.advance()
        assert len(shared_memory() - before) == 3
        process.close()
        assert shared_memory() - before == {others.name.lstrip("/")}
    finally:
        others.close()
        others.unlink()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no POSIX shared memory to be seen here")
def test_shared_memory_that_a_living_process_took_over_stays(start: Start) -> None:
    before = shared_memory()
    process = start("shm")
    process.advance()
    (name,) = (one for one in shared_memory() - before if one.startswith("psm_"))
    heir = SharedMemory(name=name)
    try:
        process.close()
        assert name in shared_memory()
    finally:
        heir.close()
        heir.unlink()


def test_a_trial_that_prints_without_end_fills_no_disk(start: Start, tmp_path: Path) -> None:
    process = start("flood", timeout_s=2.0)
    written = psutil.Process(process.pid)
    assert ended(process).status is TrialStatus.TIMEOUT
    process.close()
    assert not written.is_running()
    assert (tmp_path / "trial.log").stat().st_size <= LIMIT_BYTES
    assert process.log_tail().splitlines()[-1].strip("x") == ""  # type: ignore[union-attr]


LOCK_HOLDER = """
import sys, time
from torch.utils.file_baton import FileBaton
baton = FileBaton(sys.argv[1])
print("held" if baton.try_acquire() else "not held", flush=True)
time.sleep(600)
"""


def test_the_lock_of_a_killed_build_is_removed_and_that_of_a_running_one_stays(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BuildingAdapter, "folder", tmp_path, raising=False)
    lock = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", LOCK_HOLDER, str(lock)], stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "held\n"
        start("raise", BuildingAdapter).close()
        assert lock.exists()
        builder.kill()
    start("raise", BuildingAdapter).close()
    assert not lock.exists()
