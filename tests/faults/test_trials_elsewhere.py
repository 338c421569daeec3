"""Trials in the Python of another environment, which is a real one: what it must have, what runs there, how it ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
from second_environment import OTHER_TRANSFORMERS, make_environment, write_metadata
from test_trial_process import ended, spec_of, wait_until_gone

from kvray.engines.interpreter import inspect_python
from kvray.errors import EngineError
from kvray.extras import install_command
from kvray.probes.environment import kvray_version, library_versions
from kvray.record import TrialStatus
from kvray.testing.fake import FakeAdapter
from kvray.trial.events import RungFinished, TrialEnded
from kvray.trial.process import Launcher, TrialProcess

SOURCE = Path(__file__).parents[2] / "kvray"


class DemandingAdapter(FakeAdapter):
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "no-such-library")


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory, second_python: str) -> Iterator[Launcher]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVRAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Launcher(FakeAdapter(), python=second_python)


def test_what_the_other_python_has_is_known_before_any_trial(second_python: str) -> None:
    found = inspect_python(second_python, FakeAdapter())
    here = library_versions(FakeAdapter.libraries)
    assert found.engine_versions == {**here, "transformers": OTHER_TRANSFORMERS}
    assert found.python_version == ".".join(map(str, sys.version_info[:3]))


def test_a_python_without_the_library_of_the_engine_is_refused(second_python: str) -> None:
    with pytest.raises(EngineError, match=r"cannot run it: no-such-library is not installed\. Install"):
        inspect_python(second_python, DemandingAdapter())


def test_what_is_not_there_or_no_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"of engine 'fake', '/none/python', cannot be started: No such file"):
        inspect_python("/none/python", FakeAdapter())
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho '{}'\n")
    with pytest.raises(EngineError, match="cannot be started: Permission denied"):
        inspect_python(str(script), FakeAdapter())
    script.chmod(0o700)
    for text in ("echo '{}'", "echo 7", "exit 3"):
        script.write_text(f"#!/bin/sh\n{text}\n")
        with pytest.raises(EngineError, match=r"which is to run engine 'fake', is no Python 3\.11 or later\."):
            inspect_python(str(script), FakeAdapter())


def test_a_python_must_have_this_very_kvray(tmp_path: Path) -> None:
    bare = make_environment(tmp_path / "bare")
    with pytest.raises(EngineError, match=rf"has no kvray\. Install .*{re.escape(install_command(python=bare))}"):
        inspect_python(bare, FakeAdapter())
    (packages,) = (tmp_path / "bare").glob("lib/python3*/site-packages")
    shutil.copytree(SOURCE, packages / "kvray", ignore=shutil.ignore_patterns("__pycache__"))
    write_metadata(packages, "kvray", "0.0.7")
    with pytest.raises(EngineError, match=rf"has kvray 0\.0\.7, and this is {kvray_version()}\."):
        inspect_python(bare, FakeAdapter())
    shutil.rmtree(packages / "kvray-0.0.7.dist-info")
    write_metadata(packages, "kvray", kvray_version())
    (packages / "kvray" / "record.py").write_text("")
    with pytest.raises(EngineError, match=r"has a kvray .* with other code than this one"):
        inspect_python(bare, FakeAdapter())
    shutil.copy(SOURCE / "record.py", packages / "kvray" / "record.py")
    for library in FakeAdapter.libraries[:2]:
        write_metadata(packages, library, "1.0")
    with pytest.raises(EngineError, match="cannot run it: No module named '"):
        inspect_python(bare, FakeAdapter())


def test_a_trial_runs_there_and_records_what_is_there(launcher: Launcher, second_python: str, tmp_path: Path) -> None:
    process = TrialProcess(launcher, spec_of("dynamic=slow"), tmp_path / "trial.log")
    try:
        command = psutil.Process(process.pid).cmdline()
        event = process.advance()
        assert isinstance(event, RungFinished)
        assert command[0] == second_python
        assert event.facts.engine_versions == {
            **library_versions(FakeAdapter.libraries),
            "transformers": OTHER_TRANSFORMERS,
        }
        while not isinstance(event, TrialEnded):
            event = process.advance()
        assert event.status is TrialStatus.OK
    finally:
        process.close()
    assert {run.rung for run in process.runs} == {0, 1, 2}
    assert wait_until_gone(process.pid) == []


@pytest.mark.parametrize(
    ("commands", "status", "message"),
    [
        ("dynamic=segv", TrialStatus.CRASHED, "killed by SIGSEGV"),
        ("dynamic=exit", TrialStatus.CRASHED, "exited with code 7 without a word"),
        ("dynamic=raise", TrialStatus.ERROR, "RuntimeError: told to raise"),
        ("dynamic=oom", TrialStatus.OOM, "told to run out of memory"),
        ("dynamic=deaf,dynamic=gil", TrialStatus.TIMEOUT, "killed"),
    ],
)
def test_every_end_has_the_status_that_it_has_here(
    launcher: Launcher, tmp_path: Path, commands: str, status: TrialStatus, message: str
) -> None:
    limit_s = 2.0 if status is TrialStatus.TIMEOUT else 30.0
    process = TrialProcess(launcher, spec_of(commands, timeout_s=limit_s), tmp_path / "trial.log")
    end = ended(process)
    process.close()
    assert end.status is status
    assert message in (end.message or "")
    if commands == "dynamic=exit":
        assert process.log_tail() == "last words"
    assert wait_until_gone(process.pid) == []
    assert not (tmp_path / "tmp").exists()


def test_a_server_that_was_killed_is_told_and_replaced(launcher: Launcher, tmp_path: Path) -> None:
    process = TrialProcess(launcher, spec_of("dynamic=hang"), tmp_path / "trial.log")
    server = psutil.Process(process.pid).parent()
    assert server is not None
    assert server.ppid() == os.getpid()
    server.send_signal(signal.SIGKILL)
    end = ended(process)
    process.close()
    assert (end.status, end.message) == (
        TrialStatus.CRASHED,
        "killed together with the process that forked it, which is dead",
    )
    again = TrialProcess(launcher, spec_of("ok"), tmp_path / "trial.log")
    assert isinstance(again.advance(), RungFinished)
    again.close()


def test_a_python_that_is_not_on_this_machine_is_told_by_the_trial(tmp_path: Path) -> None:
    launcher = Launcher(FakeAdapter(), python="/none/python")
    launcher.warm()
    with pytest.raises(EngineError, match=r"'/none/python' cannot be started on .*: No such file or directory\."):
        TrialProcess(launcher, spec_of("ok"), tmp_path / "trial.log")
    broken = Launcher(FakeAdapter(), python="/bin/true")
    broken.warm()
    with pytest.raises(EngineError, match=r"'/bin/true' could not start a measurement process"):
        TrialProcess(broken, spec_of("ok"), tmp_path / "trial.log")


def test_nothing_is_imported_from_the_working_folder(
    second_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("numpy", "psutil", "json", "kvray"):
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write({module!r})\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:")
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))
    assert inspect_python(second_python, FakeAdapter()).engine_versions
    process = TrialProcess(Launcher(FakeAdapter(), python=second_python), spec_of("ok"), tmp_path / "trial.log")
    assert isinstance(process.advance(), RungFinished)
    process.close()
    assert not (tmp_path / "imported").exists()


def test_the_server_ends_with_the_one_that_started_it(second_python: str, tmp_path: Path) -> None:
    code = (
        "import sys, os; sys.path[:0] = [os.environ['HERE']]\n"
        "from pathlib import Path\nfrom kvray.testing.fake import FakeAdapter\n"
        "from kvray.trial.process import Launcher, TrialProcess\nfrom test_trial_process import spec_of\n"
        "process = TrialProcess(Launcher(FakeAdapter(), python=sys.argv[1]), spec_of('ok'), Path(sys.argv[2]))\n"
        "process.advance()\nimport psutil\nprint(psutil.Process(process.pid).ppid(), process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "HERE": str(Path(__file__).parent), "KVRAY_CACHE": str(tmp_path)}
    with psutil.Popen(
        [sys.executable, "-c", code, second_python, str(tmp_path / "log")], stdout=-1, env=environment, text=True
    ) as owner:
        pids = [int(pid) for pid in owner.stdout.readline().split()]
    deadline = time.monotonic() + 15
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2
    assert [pid for pid in pids if is_running(pid)] == []


def is_running(pid: int) -> bool:
    return bool(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
