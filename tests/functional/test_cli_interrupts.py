"""Ctrl-C, as a terminal sends it: to the whole process group."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from busy_machine import other_lines

from kvray.record import Role, TrialResult, TrialStatus
from kvray.store.parquet import ResultsStore

Kvray = Callable[..., "subprocess.CompletedProcess[str]"]
SMALL = ("--engine", "fake", "--device", "cpu", "--context", "16", "--output-len", "4", "--repeats", "1")


class Terminal:
    """`kvray tune` in a process group of its own, and every process that was seen below it."""

    def __init__(self, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kvray", "tune", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.seen: dict[int, psutil.Process] = {}

    def wait_for(self, text: str) -> list[str]:
        """Read what it says until `text` comes; returns the lines before."""
        assert self.process.stderr is not None
        heard: list[str] = []
        for line in self.process.stderr:
            if text in line:
                self.seen.update({child.pid: child for child in self._children()})
                return heard
            heard.append(line)
        pytest.fail(f"{text!r} was never said")

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        os.killpg(self.process.pid, number)

    def left(self) -> list[psutil.Process]:
        """Processes of the sweep that are still there, after a while for those that are on their way out."""
        psutil.wait_procs(self.seen.values(), timeout=240)
        return [one for one in self.seen.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    def _children(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children(recursive=True))


@pytest.fixture
def terminal(environment: dict[str, str]) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_(*arguments: str | Path) -> Terminal:
        opened.append(Terminal(tuple(map(str, arguments)), environment))
        return opened[-1]

    yield open_
    for one in opened:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.communicate()


def recorded(folder: Path, run_id: str) -> dict[str, TrialResult]:
    return {one.record.trial_id: one for one in ResultsStore(folder).read(run_id)}


INTERRUPTED = (
    r"kvray: Interrupted; finished trials, and the finished rungs of the others, are kept in (\S+)\. "
    r"Repeat the command with --resume (\S+) to measure the rest\."
)
LATE = r"1 trial could not be written there yet\. "
ENDING = (
    "kvray: Ending in good order, with what has been measured; this takes seconds. Press Ctrl-C again to leave at once."
)


def test_a_sweep_interrupted_once_keeps_what_it_has_and_resumes_with_the_rest(
    terminal: Callable[..., Terminal], kvray: Kvray, tmp_path: Path
) -> None:
    model, dynamic = "fake:dynamic/sdpa_math/f=hang", ("--cache", "dynamic", "--output", str(tmp_path))
    sweep = terminal(model, *SMALL, *dynamic)
    heard = sweep.wait_for("start   dynamic/sdpa_math/float32")
    assert len(sweep.seen) >= 3, "Ray and a slot are running"
    sweep.interrupt()
    out, err = sweep.process.communicate(timeout=240)

    assert (sweep.process.returncode, out) == (130, "")
    ending, last = err.splitlines()
    assert ending == ENDING
    said = re.fullmatch(INTERRUPTED, last)
    assert said, err
    folder, run_id = said.groups()
    assert folder == str(tmp_path)
    assert sweep.left() == []
    left = recorded(tmp_path, run_id)
    before = {name: one for name, one in left.items() if one.record.status is not TrialStatus.INTERRUPTED}
    assert [one.record.candidate.label for name, one in left.items() if name not in before] == [
        "dynamic/sdpa_math/float32"
    ]
    started = [line.split()[1] for line in heard if line.startswith("start ")]
    assert sorted(one.record.candidate.label for one in before.values()) == sorted(started)
    assert "dynamic/sdpa/float32" in started
    assert (tmp_path / "reports" / run_id / "report.md").is_file()

    again = kvray("tune", model, *SMALL, *dynamic, "--timeout", "1", "--resume", run_id)
    assert again.returncode == 0
    assert sum(line.startswith("start ") for line in again.stderr.splitlines()) == 6 - len(before)
    after = recorded(tmp_path, run_id)
    assert sum(one.record.role is not Role.CONFIRM for one in after.values()) == 6
    assert any(line.startswith("again ") for line in again.stderr.splitlines())
    assert {name: after[name] for name in before} == before
    assert [one.record.candidate.label for one in after.values() if one.record.status is TrialStatus.TIMEOUT] == [
        "dynamic/sdpa_math/float32"
    ]


def test_a_sweep_interrupted_twice_ends_at_once_with_whole_files(
    terminal: Callable[..., Terminal], kvray: Kvray, tmp_path: Path
) -> None:
    sweep = terminal("fake:dynamic/sdpa_math/f=stubborn", *SMALL, "--cache", "dynamic", "--output", tmp_path)
    heard = sweep.wait_for("start   dynamic/sdpa_math/float32")
    sweep.interrupt()
    assert sweep.process.stderr is not None
    assert sweep.process.stderr.readline() == f"{ENDING}\n"
    sweep.interrupt()
    out, err = sweep.process.communicate(timeout=240)
    assert (sweep.process.returncode, out) == (130, "")
    said = re.fullmatch(INTERRUPTED.replace("Repeat", f"(?:{LATE})?Repeat"), err.splitlines()[-1])
    assert said, err
    assert sweep.left() == []
    started = [line.split()[1] for line in heard if line.startswith("start ")]
    # The second signal may come before, while and after the interrupted trial is recorded.
    ended = [
        one.record for one in recorded(tmp_path, said[2]).values() if one.record.status is not TrialStatus.INTERRUPTED
    ]
    assert sorted(record.candidate.label for record in ended) == sorted(started)
    assert kvray("rank", tmp_path).stderr == "", "no file is torn"


@pytest.mark.slow
def test_a_sweep_interrupted_after_its_last_trial_is_written_up_all_the_same(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    sweep = terminal("fake:ok", *SMALL, "--cache", "dynamic", "--confirm", "0", "--output", tmp_path)
    sweep.wait_for("6 of 6 candidates tried")
    time.sleep(0.3)  # into the end of Ray
    sweep.interrupt()
    out, err = sweep.process.communicate(timeout=240)
    assert (sweep.process.returncode, out) == (130, "")
    ending, last = err.splitlines()
    assert ending == ENDING
    assert last.startswith((f"kvray: Interrupted after the last trial; all are kept in {tmp_path}. ", INTERRUPTED[:20]))
    assert len(list(tmp_path.glob("reports/*/best_plan.json"))) == 1
    assert sweep.left() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_sweep_that_is_told_to_end_does_as_after_ctrl_c(
    number: signal.Signals, terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    sweep = terminal("fake:dynamic/sdpa_math/f=hang", *SMALL, "--cache", "dynamic", "--output", tmp_path)
    sweep.wait_for("start   dynamic/sdpa_math/float32")
    sweep.interrupt(number)  # the whole group, as a closed terminal, a batch system and `timeout` do
    out, err = sweep.process.communicate(timeout=240)
    assert (sweep.process.returncode, out) == (130, "")
    ending, last = err.splitlines()
    assert ending == ENDING
    assert re.fullmatch(INTERRUPTED, last)
    assert sweep.left() == []


PATIENT = """
import os, signal, sys, time
from kvray.cli.interrupts import patient_interrupts

def press():
    os.kill(os.getpid(), signal.SIGINT)

with patient_interrupts(lambda: "Farewell."):
    try:
        press()
        time.sleep(60)
    except KeyboardInterrupt:
        print("ending", flush=True)
    for _ in range(int(sys.argv[1])):
        press()
    print("ended", flush=True)
try:
    press()
    time.sleep(60)
except KeyboardInterrupt:
    print("as before", flush=True)
"""


@pytest.mark.parametrize(
    ("presses", "code", "out", "err"),
    [
        (
            0,
            0,
            ["ending", "ended", "as before"],
            ["Ending in good order"],
        ),
        (1, 130, ["ending"], ["Ending in good order", "Farewell."]),
    ],
)
def test_ctrl_c_once_ends_and_twice_leaves(
    presses: int, code: int, out: list[str], err: list[str], environment: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PATIENT, str(presses)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=240,
    )
    assert done.returncode == code
    assert done.stdout.splitlines() == out
    assert [line.removeprefix("kvray: ").partition(",")[0] for line in done.stderr.splitlines()] == err


NOHUP = """
import os, signal
from kvray.cli.interrupts import patient_interrupts

signal.signal(signal.SIGHUP, signal.SIG_IGN)
with patient_interrupts(lambda: "Farewell."):
    os.kill(os.getpid(), signal.SIGHUP)
"""


def test_a_signal_that_nohup_ignores_stays_ignored(environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", NOHUP], capture_output=True, check=False, env=environment, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


PRESSED_WHILE_IMPORTING = """
import os, signal, sys

class Press:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[-1]:
            os.kill(os.getpid(), signal.SIGINT)

name = sys.argv[-1]
sys.meta_path.insert(0, Press())
from kvray.__main__ import main
sys.argv[1:] = ["profiles"]
sys.argv.append(name)
main()
"""


@pytest.mark.parametrize("module", ["kvray.cli.app", "typer", "kvray.cli.encoding", "kvray.cli.streams"])
def test_ctrl_c_while_python_imports_ends_without_a_traceback(module: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRESSED_WHILE_IMPORTING, module],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_interrupt_before_the_first_trial_says_that_nothing_was_measured(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    sweep = terminal("fake:ok", *SMALL, "--output", tmp_path / "out")
    while not (tmp_path / "out").exists():  # made when the arguments have been checked, before Ray starts
        assert sweep.process.poll() is None
        time.sleep(0.01)
    sweep.interrupt()
    out, err = sweep.process.communicate(timeout=240)
    assert (sweep.process.returncode, out) == (130, "")
    assert other_lines(err) == [ENDING, "kvray: Interrupted before anything was measured."]
