"""`kvray watch` on a real command line, with real processes: ended, killed, slowed down, and back."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from checked import checked

from kvray.check.check_file import write_output
from kvray.check.result import CheckedModel, SideInfo
from kvray.check.watch.subject import observation_id
from kvray.store.history import Observation, WatchHistory
from kvray.testing.fake import SLOWER_VARIABLE

SLOWER = 8
"""Times: no busy machine looks like that."""
LINE = ("--busy", "measure", "--processes", "1", "--confirm", "1")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """What to watch: a `check.json` of the fake engine."""
    made = checked(models={"fake": CheckedModel(model_id="fake:ok")}, sides=(SideInfo(name="A"), SideInfo(name="B")))
    path = tmp_path / "check.json"
    write_output(str(path), made.model_dump_json())
    return path


def started(plan: Path, environment: dict[str, str], *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kvray", "watch", str(plan), *LINE, *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def once(plan: Path, environment: dict[str, str], *options: str) -> tuple[int, str]:
    with started(plan, environment, "--once", *options) as process:
        _, said = process.communicate(timeout=120)
    return process.returncode, said


def wait_for(process: subprocess.Popen[str], path: Path, pattern: str) -> None:
    for _ in range(1200):
        if any(path.glob(pattern)) or process.poll() is not None:
            break
        time.sleep(0.05)
    assert any(path.glob(pattern)), process.communicate()


@pytest.mark.slow
def test_a_watch_is_ended_and_killed_and_tells_of_a_slow_down_and_of_recovery(
    plan: Path, environment: dict[str, str]
) -> None:
    folder = plan.parent / "watch"
    told = plan.parent / "told.txt"
    note = ("--exec", f"sh -c 'cat >>{told}; echo >>{told}'")
    with started(plan, environment, "--every", "6h") as process:
        wait_for(process, folder, "told.json")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "ms to the first token" in said
    assert "kvray: The watch has ended." in said
    (first,) = WatchHistory(folder).read_any()
    _with_earlier(folder, first)

    with started(plan, environment, "--once") as process:
        wait_for(process, folder / ".partial", "watch.lock")
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
    psutil.wait_procs(children, timeout=240)
    assert not [one for one in children if one.is_running()]

    cause = {SLOWER_VARIABLE: str(SLOWER), "MALLOC_TRIM_THRESHOLD_": "262144"}
    code, said = once(plan, {**environment, **cause}, *note)
    assert code == 1, said
    assert "kvray: measured again to confirm: " in said
    assert "Changed at that time: MALLOC_TRIM_THRESHOLD_: not set → 262144." in said
    assert "has become worse: time to first token, decode throughput." in said.splitlines()[-1]
    kinds = [json.loads(line)["kind"] for line in told.read_text().splitlines()]
    assert kinds.count("confirmed") == 2

    code, said = once(plan, environment, *note)
    assert code == 0, said
    kinds = [json.loads(line)["kind"] for line in told.read_text().splitlines()]
    assert kinds.count("confirmed") == kinds.count("recovered") == 2
    assert "recovered" in (folder / "watch.html").read_text(encoding="utf-8")


def _with_earlier(folder: Path, row: Observation) -> None:
    """Five observations like `row` before it. All count as disturbed, as they may be here: then none is left out."""
    history = WatchHistory(folder)
    for number in range(6):
        at = row.observed_at - dt.timedelta(hours=6 * number)
        history.append(
            dataclasses.replace(
                row, observed_at=at, observation_id=observation_id(at, row.role), disturbed=True, events="[]"
            )
        )
