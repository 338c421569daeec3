"""Real processes and real signals: whatever a trial does, it ends in one status and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import ModelRequest
from kvray.record import Phase, Role, TrialStatus
from kvray.testing.fake import FakeAdapter
from kvray.trial.events import RungFinished, TrialEnded
from kvray.trial.memory_watch import MemoryWatch
from kvray.trial.process import Launcher, TrialProcess
from kvray.trial.spec import ReferenceSpec, TrialSpec
from kvray.workload import create_custom_profile

Start = Callable[..., TrialProcess]
PROFILE = create_custom_profile(
    "fast", context_lengths=(64,), output_lengths=(4,), weight_ttft=0.4, weight_throughput=0.4, weight_memory=0.2
)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    # The fork server and all that it forks have the environment in which it was started.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVRAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Launcher(FakeAdapter())


def candidate_of(cache: CacheStrategy) -> Candidate:
    return Candidate(engine="fake", cache=cache, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32)


def spec_of(commands: str, *, timeout_s: float = 240.0) -> TrialSpec:
    candidate = candidate_of(CacheStrategy.DYNAMIC)
    return TrialSpec(
        run_id="20260101-000000-test",
        trial_id="0000-x",
        role=Role.SEARCH,
        request=ModelRequest(model_id=f"fake:{commands}"),
        candidate=candidate,
        profile=PROFILE,
        device=DeviceType.CPU,
        timeout_s=timeout_s,
    )


@pytest.fixture
def start(launcher: Launcher, tmp_path: Path) -> Iterator[Start]:
    started: list[TrialProcess] = []

    def begin(commands: str, *, timeout_s: float = 240.0, memory: MemoryWatch | None = None) -> TrialProcess:
        spec = spec_of(commands, timeout_s=timeout_s)
        process = TrialProcess(launcher, spec, tmp_path / "trial.log", memory=memory)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.close()


def group_members(leader: int) -> list[int]:
    members = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return members


def wait_until_gone(leader: int) -> list[int]:
    deadline = time.monotonic() + 10
    while (left := group_members(leader)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def ended(process: TrialProcess) -> TrialEnded:
    event = process.advance()
    assert isinstance(event, TrialEnded), event
    return event


def test_a_healthy_trial_reports_every_rung_then_its_end(start: Start) -> None:
    process = start("ok")
    for rung in (0, 1, 2):
        event = process.advance()
        assert isinstance(event, RungFinished)
        assert event.rung == rung
    assert ended(process).status is TrialStatus.OK
    rungs = [run.rung for run in process.runs]
    assert rungs == sorted(rungs)
    assert Counter(rungs) >= Counter([0, 1, 2, 2]), "more only where other programs disturbed a run"
    assert event.facts is not None
    assert event.facts.pid == process.pid != os.getpid()


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ("raise", TrialStatus.ERROR, "RuntimeError: told to raise"),
        ("oom", TrialStatus.OOM, "told to run out of memory"),
        ("rlimit", TrialStatus.OOM, "Unable to allocate 2.00 GiB"),
        ("unsupported", TrialStatus.UNSUPPORTED, "told to be unsupported"),
        ("substituted", TrialStatus.SUBSTITUTED, "told to run something else"),
        ("exit", TrialStatus.CRASHED, "exited with code 7 without a word"),
        ("segv", TrialStatus.CRASHED, "killed by SIGSEGV"),
        ("give_up", TrialStatus.CRASHED, "rank 1 was killed by SIGSEGV: told to die"),
        ("kill", TrialStatus.CRASHED, "killed by SIGKILL"),
        ("garbage", TrialStatus.CRASHED, r"the process wrote b'\x00\x00\x01\x00' into the pipe of its events"),
    ],
)
def test_every_way_to_fail_becomes_one_status(start: Start, command: str, status: TrialStatus, message: str) -> None:
    process = start(f"dynamic={command}")
    event = ended(process)
    assert event.status is status
    assert event.message is not None
    assert event.message.startswith(message)
    assert event.phase is Phase.WARMUP
    process.close()
    assert wait_until_gone(process.pid) == []


def test_the_phase_of_a_failure_is_known(start: Start) -> None:
    assert ended(start("dynamic=raise@load")).phase is Phase.LOAD
    assert ended(start("dynamic=segv@load")).phase is Phase.LOAD


def test_last_words_are_kept(start: Start) -> None:
    process = start("dynamic=exit")
    ended(process)
    assert process.log_tail() == "last words"


def test_a_traceback_is_kept(start: Start) -> None:
    process = start("dynamic=raise")
    ended(process)
    tail = process.log_tail()
    assert tail is not None
    assert tail.startswith("Traceback")
    assert tail.endswith("RuntimeError: told to raise")


@pytest.mark.parametrize(
    "commands",
    ["hang", "gil", "stopped", "stubborn", "children+gil", "deaf+children+gil", "thread+gil"],
)
def test_a_hung_trial_becomes_a_timeout_and_is_killed_with_its_group(start: Start, commands: str) -> None:
    process = start(",".join(f"dynamic={command}" for command in commands.split("+")), timeout_s=1.0)
    event = ended(process)
    assert event.status is TrialStatus.TIMEOUT
    assert event.message == "no end of phase warmup within 1 s; killed"
    process.close()
    assert wait_until_gone(process.pid) == []


def test_processes_that_a_trial_leaves_behind_are_killed_with_it(start: Start) -> None:
    process = start("dynamic=children")
    process.advance()
    assert len(group_members(process.pid)) == 2
    process.close()
    assert wait_until_gone(process.pid) == []


def test_a_thread_that_does_not_end_keeps_no_process_alive(start: Start) -> None:
    process = start("dynamic=thread")
    while isinstance(event := process.advance(), RungFinished):
        pass
    assert event.status is TrialStatus.OK
    process.close()
    assert wait_until_gone(process.pid) == []


def test_a_stopped_trial_ends_when_its_process_is_closed(start: Start) -> None:
    process = start("ok")
    assert isinstance(process.advance(), RungFinished)
    process.close()
    assert wait_until_gone(process.pid) == []


def test_the_next_trial_starts_clean_after_a_crash(start: Start) -> None:
    ended(start("dynamic=segv"))
    assert isinstance(start("ok").advance(), RungFinished)


def test_a_folder_for_logs_that_was_cleared_away_is_made_again(launcher: Launcher, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "trial.log"
    for _ in range(2):
        process = TrialProcess(launcher, spec_of("dynamic=exit"), log)
        assert ended(process).message == "exited with code 7 without a word"
        process.close()
        assert process.log_tail() == "last words"
        shutil.rmtree(log.parent)


SERVER_KILLED = """
import os, signal, sys
from pathlib import Path
import psutil
sys.path[:0] = {path!r}
from test_trial_process import spec_of
from kvray.testing.fake import FakeAdapter
from kvray.trial.process import Launcher, TrialProcess
launcher = Launcher(FakeAdapter())
first = TrialProcess(launcher, spec_of("dynamic=hang"), Path({log!r}))
psutil.Process(first.pid).parent().kill()
end = first.advance()
print(end.status, end.message, flush=True)
first.close()
second = TrialProcess(launcher, spec_of("ok"), Path({log!r}))
print(second.advance().rung, flush=True)
second.close()
"""


def test_a_slot_outlives_its_fork_server(tmp_path: Path) -> None:
    code = SERVER_KILLED.format(path=[str(Path(__file__).parent)], log=str(tmp_path / "log"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
    told = "killed together with the process that forked it, which is dead"
    assert done.stdout.splitlines() == [f"crashed {told}", "0"]


OWNER = """
import sys, time
from pathlib import Path
from typing import ClassVar
sys.path[:0] = {path!r}
from test_trial_process import spec_of
from kvray.testing.fake import FakeAdapter
from kvray.trial.process import Launcher, TrialProcess
process = TrialProcess(Launcher(FakeAdapter()), spec_of("dynamic=hang"), Path({log!r}))
print(process.pid, flush=True)
process.advance()
"""


def test_no_process_outlives_a_killed_owner(tmp_path: Path) -> None:
    code = OWNER.format(path=[str(Path(__file__).parent)], log=str(tmp_path / "log"))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        leader = int(owner.stdout.readline())
        server = psutil.Process(leader).ppid()
        owner.kill()
        owner.wait()
    assert wait_until_gone(leader) == []
    deadline = time.monotonic() + 10
    while psutil.pid_exists(server) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(server) or psutil.Process(server).status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def compared(launcher: Launcher, tmp_path: Path) -> Iterator[Start]:
    """Start a trial of a static cache whose reference, a dynamic one, has yet to be made."""
    started: list[TrialProcess] = []

    def begin(commands: str, *, timeout_s: float = 240.0) -> TrialProcess:
        spec = replace(
            spec_of(commands, timeout_s=timeout_s),
            run_id=tmp_path.name,  # a failure to make a reference is remembered by run
            candidate=candidate_of(CacheStrategy.STATIC),
            reference=ReferenceSpec(candidate=candidate_of(CacheStrategy.DYNAMIC), model_revision=str(tmp_path)),
        )
        started.append(TrialProcess(launcher, spec, tmp_path / "trial.log"))
        return started[-1]

    yield begin
    for process in started:
        process.close()


@pytest.mark.parametrize(("command", "reason"), [("segv@load", "its process died"), ("hang@load", "took too long")])
def test_a_reference_that_cannot_be_made_costs_the_trial_nothing_but_its_quality(
    compared: Start, command: str, reason: str
) -> None:
    process = compared(f"dynamic={command}", timeout_s=3.0)
    event = process.advance()
    assert isinstance(event, RungFinished)
    assert event.facts.quality is None
    assert reason in str(event.facts.quality_note)


def test_a_process_that_makes_a_reference_dies_with_its_trial(compared: Start) -> None:
    process = compared("dynamic=hang@load")
    deadline = time.monotonic() + 240
    while len(group_members(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(group_members(process.pid)) == 2
    os.kill(process.pid, signal.SIGKILL)
    assert wait_until_gone(process.pid) == []


def test_a_loss_over_the_limit_is_a_status_and_what_was_measured_is_kept(compared: Start) -> None:
    process = compared("static=lossy")
    event = ended(process)
    assert (event.status, event.phase) == (TrialStatus.QUALITY, Phase.QUALITY)
    assert "is over the limit of" in str(event.message)
    assert event.facts is not None
    assert event.facts.quality is not None
    assert {run.rung for run in process.runs} == {0}, "a run that other programs disturbed is repeated"


class UnpreloadableAdapter(FakeAdapter):
    preload: ClassVar[tuple[str, ...]] = ("kvray_has_no_such_module", "module_that_raises")


def test_a_library_that_cannot_be_imported_beforehand_ends_no_fork_server(tmp_path: Path) -> None:
    (tmp_path / "module_that_raises.py").write_text("raise OSError('read-only')")
    code = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(tmp_path)]!r}\n"
        "from pathlib import Path\n"
        "from test_trial_process import UnpreloadableAdapter, spec_of\n"
        "from kvray.trial.process import Launcher, TrialProcess\n"
        f"process = TrialProcess(Launcher(UnpreloadableAdapter()), spec_of('ok'), Path({str(tmp_path / 'log')!r}))\n"
        "print(process.advance().rung); process.close()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=240
    )
    assert done.stdout == "0\n"
    assert "OSError: read-only" in done.stderr


class OtherAdapter(FakeAdapter):
    preload: ClassVar[tuple[str, ...]] = ("wave",)

    def process_environment(self) -> dict[str, str]:
        return {"KVRAY_TEST_OTHER_ENGINE": "1"}


def test_two_engines_of_a_slot_have_fork_servers_and_environments_of_their_own(tmp_path: Path) -> None:
    processes = [
        TrialProcess(Launcher(adapter), spec_of("ok"), tmp_path / type(adapter).__name__)
        for adapter in (FakeAdapter(), OtherAdapter())
    ]
    try:
        servers = [psutil.Process(process.pid).parent() for process in processes]
        assert all(isinstance(process.advance(), RungFinished) for process in processes)
        told = [None if server is None else server.environ().get("KVRAY_TEST_OTHER_ENGINE") for server in servers]
        assert told == [None, "1"]
        assert servers[0] != servers[1]
        assert "KVRAY_TEST_OTHER_ENGINE" not in os.environ
    finally:
        for process in processes:
            process.close()
