"""The sides of a check: child processes with a Python and variables of their own, that measure in fresh processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_lines import command_line
from lean_environment import create_environment
from second_environment import OTHER_TRANSFORMERS, make_environment, write_metadata

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.check import side as side_module
from kvray.check.side import Side, SideSpec
from kvray.check.side_request import SideRequest
from kvray.engines.base import ModelRequest
from kvray.errors import EngineError
from kvray.record import Phase, Role, TrialStatus
from kvray.trial.spec import ReferenceSpec
from kvray.workload import create_custom_profile

ROOT = Path(__file__).parents[2]
DYNAMIC = Candidate(engine="fake", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32)
PROFILE = create_custom_profile(
    "sides",
    context_lengths=(16,),
    output_lengths=(4,),
    repeats=1,
    weight_ttft=0.4,
    weight_throughput=0.4,
    weight_memory=0.2,
)
GONE_WITHIN_S = 15.0
OpenSide = Callable[..., Side]


def request_of(model: str = "fake:ok", trial_id: str = "t-1", **values: Any) -> SideRequest:
    return SideRequest(
        run_id="check-1",
        trial_id=trial_id,
        candidate=DYNAMIC,
        model=ModelRequest(model_id=model),
        profile=PROFILE,
        device=DeviceType.CPU,
        **{"round_number": 1, "timeout_s": 240.0, **values},
    )


@pytest.fixture
def open_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenSide]:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))
    opened: list[Side] = []

    def start(name: str = "now", **spec: Any) -> Side:
        side = Side(SideSpec(name=name, **{"engines": ("fake",), **spec}), tmp_path / name)
        opened.append(side)
        return side.__enter__()

    yield start
    for side in opened:
        side.__exit__()


@pytest.fixture
def side(open_side: OpenSide) -> Side:
    return open_side()


def programs() -> list[psutil.Process]:
    """Those of the sides that this process has started."""
    return [one for one in psutil.Process().children() if "kvray.check.side_program" in command_line(one)]


def measuring(program: psutil.Process) -> list[psutil.Process]:
    """All that is alive below a side's program, once a measurement process is among it."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        below: list[psutil.Process] = program.children(recursive=True)
        if any(one.ppid() != program.pid for one in below):  # the fork server's child
            return below
        time.sleep(0.02)
    raise AssertionError("no trial has begun")


def left(processes: list[psutil.Process]) -> list[psutil.Process]:
    deadline = time.monotonic() + GONE_WITHIN_S
    while (there := [one for one in processes if is_alive(one)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return there


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def test_each_trial_has_a_process_of_its_own_and_a_record_of_a_check(side: Side) -> None:
    results = [side.measure(request_of(trial_id=f"t-{number}", round_number=number)) for number in (1, 2)]
    records = [one.record for one in results]
    assert [(one.status, one.role, one.confirm_round) for one in records] == [
        (TrialStatus.OK, Role.CHECK, 1),
        (TrialStatus.OK, Role.CHECK, 2),
    ]
    assert [{run.rung for run in one.runs} for one in results] == [{1}, {1}]
    assert len({record.pid for record in records} | {one.pid for one in programs()}) == 3
    assert {record.hardware for record in records} == {side.facts.hardware}
    assert all(record.engine_versions and record.started_at for record in records)


def test_quality_is_measured_where_it_is_asked_for(side: Side) -> None:
    reference = ReferenceSpec(candidate=DYNAMIC, model_revision="1")
    measured = side.measure(request_of(reference=reference, with_quality=True))
    assert measured.record.kl_mean == pytest.approx(0.0)
    assert {run.rung for run in measured.runs} == {0, 1}
    assert side.measure(request_of(reference=reference, trial_id="t-2")).record.kl_mean is None


def test_two_sides_differ_in_their_variables_and_nothing_of_a_secret_is_told(
    open_side: OpenSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    before = open_side("A")
    now = open_side(
        "B", variables={"OMP_NUM_THREADS": "1", "SOME_PROXY": "proxy-of-B", "SOME_SECRET": "hunter2hunter2"}
    )
    assert (before.facts.threads, now.facts.threads) == (2, 1)
    failed = [one.measure(request_of("fake:dynamic=leak")).record for one in (before, now)]
    assert [record.status for record in failed] == [TrialStatus.ERROR] * 2
    assert ["proxy-of-B" in (record.log_tail or "") for record in failed] == [False, True]
    assert "SOME_SECRET" in (failed[1].log_tail or "")
    assert "hunter2" not in f"{failed[1]} {now.spec}"
    assert now.spec.variable_names == ("OMP_NUM_THREADS", "SOME_PROXY", "SOME_SECRET")


def test_another_environment_measures_with_its_own_libraries(open_side: OpenSide, second_python: str) -> None:
    side = open_side("B", python=second_python)
    assert side.facts.python == second_python
    assert side.facts.engine_versions["fake"]["transformers"] == OTHER_TRANSFORMERS
    assert side.measure(request_of()).record.transformers_version == OTHER_TRANSFORMERS


def test_a_side_needs_nothing_but_the_core_and_its_engine(open_side: OpenSide, tmp_path: Path) -> None:
    """No Ray, and nothing of another engine."""
    side = open_side("B", python=str(create_environment(tmp_path / "core")))
    assert side.facts.engine_versions["fake"].keys() == {"numpy"}
    assert side.measure(request_of()).record.status is TrialStatus.OK


def test_an_engine_with_a_python_of_its_own_measures_there(open_side: OpenSide, second_python: str) -> None:
    side = open_side(engine_pythons={"fake": second_python})
    assert side.facts.python == sys.executable
    assert side.facts.engine_versions["fake"]["transformers"] == OTHER_TRANSFORMERS
    assert side.measure(request_of()).record.transformers_version == OTHER_TRANSFORMERS


def test_a_trial_that_hangs_ends_at_its_time_limit_and_the_next_one_is_measured(side: Side) -> None:
    hung = side.measure(request_of("fake:dynamic=hang", timeout_s=1.0)).record
    assert (hung.status, hung.phase) == (TrialStatus.TIMEOUT, Phase.WARMUP)
    assert side.measure(request_of(trial_id="t-2")).record.status is TrialStatus.OK


def test_a_side_that_is_killed_is_a_crashed_trial_and_starts_again(side: Side) -> None:
    (program,) = programs()
    found: list[psutil.Process] = []

    def kill() -> None:
        found.extend(measuring(program))
        program.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    lost = side.measure(request_of("fake:dynamic=hang")).record
    killer.join()
    assert lost.status is TrialStatus.CRASHED
    assert (lost.message or "").startswith("Side now died")
    assert left(found) == []
    assert side.measure(request_of(trial_id="t-2")).record.status is TrialStatus.OK


def test_a_side_that_stops_answering_is_ended(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_module, "_GRACE_S", 0.2)
    (program,) = programs()
    program.suspend()
    silent = side.measure(request_of(timeout_s=0.1)).record
    assert (silent.status, (silent.message or "")[:26]) == (TrialStatus.TIMEOUT, "Side now said nothing for ")
    assert left([program]) == []


def test_nothing_is_left_where_the_check_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from test_check_sides import *\n"
        "with Side(SideSpec(name='A', engines=('fake',)), Path(sys.argv[1])) as side:\n"
        "    side.measure(request_of('fake:dynamic=hang,dynamic=daemon@load,dynamic=children@load'))\n"
    )
    here = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(here), "KVRAY_CACHE": str(tmp_path / "cache")}
    owner = psutil.Popen([sys.executable, "-c", code, str(tmp_path / "A")], env=environment)
    deadline = time.monotonic() + 240
    while not (found := owner.children()) and time.monotonic() < deadline:
        time.sleep(0.02)
    (program,) = found
    processes = [program, *measuring(program)]
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert left(processes) == []


# Another Python


@pytest.fixture(scope="module")
def other_kvray(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A virtual environment with a kvray 0.0.9 of its own: its Python, and the folder of the package."""
    folder = tmp_path_factory.mktemp("older")
    libraries = [path for path in sys.path if path and Path(path).resolve() != ROOT and path != str(ROOT / "tests")]
    python = make_environment(folder / "env", *libraries)
    (packages,) = (folder / "env").glob("lib/python3*/site-packages")
    shutil.copytree(ROOT / "kvray", packages / "kvray", ignore=shutil.ignore_patterns("__pycache__"))
    write_metadata(packages, "kvray", "0.0.9")
    entry = "[kvray.engines]\nfake = kvray.testing.fake:FakeAdapter\n"
    (packages / "kvray-0.0.9.dist-info" / "entry_points.txt").write_text(entry, encoding="utf-8")
    (packages / "kvray" / "errors.py").open("a", encoding="utf-8").write("# other code\n")
    return python, packages


def test_a_record_that_another_kvray_has_made_is_read(open_side: OpenSide, other_kvray: tuple[str, Path]) -> None:
    before, now = open_side("A", python=other_kvray[0]), open_side("B")
    assert (before.facts.kvray_version, now.facts.kvray_version) != (now.facts.kvray_version, "0.0.9")
    assert before.facts.kvray_version == "0.0.9"
    assert before.facts.kvray_source != now.facts.kvray_source
    measured = before.measure(request_of())
    assert (measured.record.status, measured.record.kvray_version) == (TrialStatus.OK, "0.0.9")
    assert measured.runs


def test_a_kvray_that_cannot_answer_is_told_with_the_cure(
    open_side: OpenSide, other_kvray: tuple[str, Path], tmp_path: Path
) -> None:
    python, packages = other_kvray
    request = packages / "kvray" / "check" / "side_request.py"
    text = request.read_text(encoding="utf-8")
    request.write_text(text.replace("PROTOCOL = 1", "PROTOCOL = 999"), encoding="utf-8")
    assert "PROTOCOL = 999" in request.read_text(encoding="utf-8")
    with pytest.raises(EngineError, match=r"^Side B .* has kvray 0\.0\.9, whose checks this kvray .* cannot talk to"):
        open_side("B", python=python)
    request.write_text(text, encoding="utf-8")
    program = packages / "kvray" / "check" / "side_program.py"
    program.rename(tmp_path / "program")
    with pytest.raises(EngineError, match=r"has kvray 0\.0\.9, which is too old for checks\. Replace it: .* -m pip "):
        open_side("B", python=python)
    shutil.move(packages / "kvray", tmp_path / "kvray")
    with pytest.raises(
        EngineError, match=r"has no kvray, which measures there\. Install it: .* -m pip install .*\[llama-cpp\]"
    ):
        open_side("B", python=python, engines=("fake", "llama_cpp"))
    shutil.move(tmp_path / "kvray", packages / "kvray")
    (tmp_path / "program").rename(program)
    assert programs() == []


@pytest.mark.parametrize(
    ("path", "told"), [("/bin/true", "is no Python 3.11 or later"), ("/none", "cannot be started")]
)
def test_what_is_no_python_is_told(open_side: OpenSide, path: str, told: str) -> None:
    with pytest.raises(EngineError, match=f"^Side B \\({path}\\) {told}"):
        open_side("B", python=path)


def test_an_engine_that_cannot_run_there_is_told(tmp_path: Path) -> None:
    spec = SideSpec(name="B", engines=("fake", "unheard-of"))
    with pytest.raises(EngineError, match=r"^Side B cannot measure: Unknown engine 'unheard-of'"), Side(spec, tmp_path):
        pass
    assert programs() == []


def test_what_libraries_print_is_no_answer(open_side: OpenSide, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "noisy", *sys.path)
    (packages,) = (tmp_path / "noisy").glob("lib/python3*/site-packages")
    (packages / "noisy.py").write_text(
        "import os, threading, time\nos.write(1, b'\\xff\\n{}\\n[1]\\n{\"answer\": \"not yet\"')\nos.write(1, b'\\n')\n"
        "def print_on():\n    while True:\n        os.write(1, b'noise\\n')\n        time.sleep(0.01)\n"
        "threading.Thread(target=print_on, daemon=True).start()\n",
        encoding="utf-8",
    )
    (packages / "zz_noisy.pth").write_text("import noisy\n", encoding="utf-8")
    loud = subprocess.run([python, "-c", ""], capture_output=True, check=True, stdin=subprocess.DEVNULL)
    assert b"noise" in loud.stdout
    assert open_side("B", python=python).measure(request_of()).record.status is TrialStatus.OK
