"""Which processes are a measurement's own. Asked of real children, and of a model that lives in a server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import ModelRequest
from kvray.probes import cpu_load
from kvray.probes.cpu_load import OtherLoad, OwnThreads
from kvray.probes.disturbance import TrialWatch
from kvray.probes.own_processes import OwnProcesses, descendants
from kvray.testing.fake import FakeModel
from kvray.testing.fake_server import HELD_MIB
from kvray.workload import Cell

pytestmark = pytest.mark.spawns
CANDIDATE = Candidate(engine="fake", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32)
TOKENS = 600
"""About a third of a second."""
GRANDCHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def served() -> Iterator[FakeModel]:
    model = FakeModel(ModelRequest(model_id="fake:=server"), CANDIDATE)
    model.prepare(Cell(64, TOKENS, 1))
    yield model
    model.close()


def server_of(model: FakeModel) -> psutil.Process:
    (pid,) = set(model.processes()) - {os.getpid()}
    return psutil.Process(pid)


def test_what_a_process_has_started_belongs_to_it_in_every_generation() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", GRANDCHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert {child.pid, grandchild} <= set(descendants(os.getpid()))
        assert descendants(child.pid) == [grandchild]
        assert OwnProcesses().pids()[0] == os.getpid()
        assert {child.pid, grandchild} <= set(OwnProcesses().pids())


def test_an_engine_names_a_process_that_is_not_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own = OwnProcesses()
    assert os.getppid() not in own.pids()
    monkeypatch.setattr("kvray.probes.own_processes.descendants", lambda _: [])
    own.follow(lambda: (os.getpid(), os.getppid()))
    assert own.pids() == (os.getpid(), os.getppid())


def test_the_cpu_time_of_an_engine_s_server_is_its_own(served: FakeModel) -> None:
    own, server = OwnProcesses(), server_of(served)
    before_s, alone_s = own.cpu_s(), cpu_load.own_cpu_s()
    used_s = -server.cpu_times().user
    served.generate(TOKENS)
    used_s += server.cpu_times().user
    assert used_s > 0.05
    assert own.cpu_s() - before_s >= used_s + (cpu_load.own_cpu_s() - alone_s) - 0.03


def test_a_server_s_cpu_time_is_no_other_program_s(served: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine on which nothing runs but this process and the server."""
    server = server_of(served)

    def busy_s() -> float:
        times = server.cpu_times()
        return float(times.user + times.system) + cpu_load.own_cpu_s()

    monkeypatch.setattr(cpu_load, "_machine_busy_s", busy_s)
    monkeypatch.setattr(OwnThreads, "waited", lambda self: None)
    monkeypatch.setattr("kvray.probes.cpu.clock_mhz", lambda: None)
    watch, alone = TrialWatch(DeviceType.CPU), OtherLoad()
    watch.own.follow(served.processes)
    used_s, started = -busy_s(), time.perf_counter()
    run = watch.start_run()
    served.generate(TOKENS)
    used_s, passed_s = used_s + busy_s(), time.perf_counter() - started
    seen = alone.cpus()
    assert seen is not None
    assert seen > 0.7 * (used_s - 0.1) / passed_s, "the server alone"
    assert run.finish().disturbance is None


def test_a_thread_of_a_server_that_waits_is_one_of_the_measurement(tmp_path: Path) -> None:
    def task(pid: int, *, ran_s: float, waited_s: float) -> None:
        folder = tmp_path / str(pid) / "task" / str(pid)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "schedstat").write_text(f"{round(ran_s * 1e9)} {round(waited_s * 1e9)} 1\n")

    def waited(server_ran_s: float) -> float:
        task(os.getpid(), ran_s=1.0, waited_s=0.0)
        task(990_001, ran_s=5.0, waited_s=7.0)
        folders = [tmp_path / str(pid) / "task" for pid in (os.getpid(), 990_001)]
        watched = OwnThreads(tasks=lambda: folders)
        time.sleep(0.01)
        task(990_001, ran_s=5.0 + server_ran_s, waited_s=7.1)
        seen = watched.waited()
        assert seen is not None
        return seen.for_others

    assert waited(server_ran_s=0.0) > 0
    assert waited(server_ran_s=1000.0) == 0.0, "it kept every CPU busy itself, and waited for nobody else"


def test_the_peak_of_an_engine_s_other_processes_is_theirs_within_the_window(served: FakeModel) -> None:
    own = OwnProcesses()
    own.reset_peak()
    assert own.others_peak_mib() == 0.0, "nothing but this process is named"
    own.follow(served.processes)
    assert HELD_MIB <= own.others_peak_mib() <= HELD_MIB + 64, "it appeared within the window"
    own.reset_peak()
    assert HELD_MIB <= own.others_peak_mib() <= HELD_MIB + 64
    server_of(served).kill()
    server_of(served).wait(5)
    assert own.others_peak_mib() >= HELD_MIB, "what it held counts although it has ended"
