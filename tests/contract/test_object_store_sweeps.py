"""Whole sweeps into an object store that hangs, and whose driver is killed or interrupted meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from unwell_s3 import Illness

from kvray.record import TrialStatus
from kvray.store.parquet import ResultsStore

pytestmark = pytest.mark.slow
LINE = (
    *("tune", "fake:a=slow", "--engine", "fake", "--device", "cpu", "--context", "16", "--output-len", "4"),
    *("--repeats", "1", "--cache", "dynamic,static", "--dtype", "float32", "--confirm", "0", "--search", "grid"),
)


def start(folder: Path, output: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kvray", *LINE, "--output", output, *arguments]
    environment = {**os.environ, "KVRAY_CACHE": str(folder / "cache"), "COLUMNS": "200"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_until(is_so: Callable[[], object], within_s: float = 240) -> None:
    end = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.2)


def measured(place: str) -> dict[str, int | None]:
    """By candidate, the process that measured it."""
    store = ResultsStore(place)
    found = [one.record for run in store.run_ids() for one in store.read(run)]
    return {one.candidate_id: one.pid for one in found if one.status is TrialStatus.OK}


def resumed(folder: Path, output: str) -> str:
    (run_id,) = ResultsStore(output).run_ids()
    process = start(folder, output, "--resume", run_id)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    return told


def test_a_driver_killed_in_an_upload_leaves_nothing_torn_and_the_rest_is_measured(
    tmp_path: Path, uri: str, behind: str, illness: Illness
) -> None:
    driver = start(tmp_path, uri)
    wait_until(lambda: measured(behind))
    illness.halts = True
    assert illness.is_waiting.wait(240)
    driver.kill()
    driver.communicate()
    illness.halts = False
    illness.goes_on.set()
    before = measured(behind)
    told = resumed(tmp_path, behind)
    assert f"Process {driver.pid} on " in told
    assert "has ended; this process takes over" in told
    now = measured(behind)
    assert {key: now[key] for key in before} == before
    assert len(now) > len(before)


def test_ctrl_c_ends_a_sweep_whose_service_hangs_and_the_rest_is_measured_later(
    tmp_path: Path, uri: str, behind: str, illness: Illness
) -> None:
    driver = start(tmp_path, uri)
    wait_until(lambda: measured(behind))
    illness.halts = True
    assert illness.is_waiting.wait(240)
    driver.send_signal(signal.SIGINT)
    assert driver.stderr is not None
    for line in driver.stderr:
        if "Ending in good order" in line:
            break
    driver.send_signal(signal.SIGINT)
    _, told = driver.communicate(timeout=240)
    assert driver.returncode == 130
    assert "to measure the rest." in told
    illness.halts = False
    illness.goes_on.set()
    before = measured(behind)
    resumed(tmp_path, behind)
    now = measured(behind)
    assert {key: now[key] for key in before} == before
    assert len(now) > len(before)
