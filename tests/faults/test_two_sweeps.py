"""Two sweeps at once, as real processes: on one results folder, on one sweep, on one machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvray.candidate import DeviceType
from kvray.probes.contention import announced_sweep
from kvray.probes.holds import HeldError, hold, holder_of
from kvray.store.parquet import ResultsStore

Open = Callable[..., "subprocess.Popen[str]"]
SMALL = ("--engine", "fake", "--device", "cpu", "--context", "16", "--output-len", "4", "--repeats", "1")
TWO = ("--cache", "dynamic", "--attention", "sdpa", "--confirm", "0", "--search", "grid")


@pytest.fixture
def kvray(tmp_path: Path) -> Iterator[Open]:
    """Start `kvray tune ARGUMENTS…`; what still runs when the test ends is killed with its process group."""
    opened: list[subprocess.Popen[str]] = []

    def open_(*arguments: str) -> subprocess.Popen[str]:
        opened.append(
            subprocess.Popen(
                [sys.executable, "-m", "kvray", "tune", *arguments, "--output", str(tmp_path / "results")],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "KVRAY_CACHE": str(tmp_path / "cache"), "COLUMNS": "120", "NO_COLOR": "1"},
                start_new_session=True,
            )
        )
        return opened[-1]

    yield open_
    for one in opened:
        if one.poll() is None:
            os.killpg(one.pid, signal.SIGKILL)
        one.communicate()


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """The first line of stderr that holds `text`."""
    assert process.stderr is not None
    heard = []
    for line in process.stderr:
        heard.append(line)
        if text in line:
            return line
    pytest.fail(f"{text!r} was never said: {heard}")


@pytest.mark.slow
def test_two_sweeps_on_one_folder_have_ids_of_their_own_and_both_complete(kvray: Open, tmp_path: Path) -> None:
    both = [kvray("fake:ok", *SMALL, *TWO, "--json") for _ in range(2)]
    ended = [(*one.communicate(timeout=200), one.returncode) for one in both]
    assert [code for _, _, code in ended] == [0, 0], ended
    run_ids = [json.loads(out)["run_id"] for out, _, _ in ended]
    assert len(set(run_ids)) == 2
    store = ResultsStore(tmp_path / "results")
    assert sorted(store.run_ids()) == sorted(run_ids)
    for run_id in run_ids:
        results = store.read(run_id)
        assert [one.record.status.value for one in results] == ["ok", "ok"]
        assert {run.run_id for one in results for run in one.runs} == {run_id}
    assert list((tmp_path / "cache" / "sweeps").iterdir()) == []


@pytest.mark.slow  # two whole sweeps
def test_a_sweep_that_is_being_measured_cannot_be_resumed_and_one_that_was_killed_can(
    kvray: Open, tmp_path: Path
) -> None:
    first = kvray("fake:bfloat16=hang", *SMALL, *TWO)
    run_id = wait_for(first, "sweep 2").split()[1].rstrip(":")
    wait_for(first, "start   dynamic/sdpa/bfloat16")
    resume = ("fake:bfloat16=hang", *SMALL, *TWO, "--timeout", "1", "--resume", run_id)

    second = kvray(*resume)
    out, err = second.communicate(timeout=240)
    assert (second.returncode, out) == (10, "")
    (said,) = err.splitlines()
    assert said.startswith(f"kvray: Sweep '{run_id}' is being measured already, by process {first.pid} on ")

    first.send_signal(signal.SIGKILL)
    first.wait(timeout=240)
    third = kvray(*resume)
    out, err = third.communicate(timeout=200)
    assert third.returncode == 0, err
    assert "Another sweep" not in err
    assert "start   dynamic/sdpa/float32" not in err, "that one was recorded"
    recorded = ResultsStore(tmp_path / "results").read(run_id)
    assert sorted(one.record.status.value for one in recorded) == ["ok", "timeout"]


@pytest.mark.slow
def test_a_sweep_whose_folder_vanished_and_was_written_anew_cannot_be_resumed_beside_it(
    kvray: Open, tmp_path: Path
) -> None:
    first = kvray("fake:bfloat16=hang", *SMALL, *TWO)
    run_id = wait_for(first, "sweep 2").split()[1].rstrip(":")
    wait_for(first, "start   dynamic/sdpa/float32")
    (tmp_path / "results").rename(tmp_path / "gone")
    wait_for(first, "start   dynamic/sdpa/bfloat16")
    second = kvray("fake:bfloat16=hang", *SMALL, *TWO, "--timeout", "1", "--resume", run_id)
    _, err = second.communicate(timeout=240)
    assert second.returncode == 10, err
    assert f"Sweep '{run_id}' is being measured already, by process {first.pid} on " in err


HOLDER = """
import sys, time
from pathlib import Path
from kvray.candidate import DeviceType
from kvray.probes.contention import announced_sweep
from kvray.probes.holds import hold
with hold(Path(sys.argv[1]), {"pid": "the holder"}), announced_sweep(DeviceType.CPU, "the-first"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_hold_and_an_announcement_end_with_their_process_however_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(HeldError), hold(path, {}):
            raise AssertionError("held twice")
        assert holder_of(path) == {"pid": "the holder"}
        with announced_sweep(DeviceType.CPU, "the-second") as others:
            (told,) = others
            assert told.startswith(f"Another sweep, the-first of process {holder.pid}, runs on the same device: ")
    finally:
        holder.kill()
        holder.communicate()
    assert path.exists(), "it had no time to remove it"
    with announced_sweep(DeviceType.CPU, "the-third") as others:
        assert others == ()
    with hold(path, {"pid": "the next"}):
        assert holder_of(path) == {"pid": "the next"}
