"""`kvray batch` with the fake engine: killed in the middle, resumed, and what it leaves."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kvray.record import TrialStatus
from kvray.store.parquet import ResultsStore

FILE = """\
defaults: {engine: fake, profiles: [ci-micro], context_lengths: [64], output_lengths: [4], dtypes: [float32],
           attentions: [sdpa], search: grid, confirm_rounds: 0}
models: ["fake:ok", "fake:=nonsense", "fake:=oom", "fake:a=slow"]
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kvray", "batch", *arguments, "--output", str(folder / "results")]
    environment = {**os.environ, "KVRAY_CACHE": str(folder / "cache"), "COLUMNS": "200"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def manifest(folder: Path) -> dict[str, object]:
    (path,) = (folder / "results" / "batches").glob("*.json")
    read: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return read


def statuses(folder: Path) -> list[str]:
    return [one["status"] for one in manifest(folder)["sweeps"]]  # type: ignore[attr-defined]


def wait_until(is_so: Callable[[], bool], within_s: float = 240) -> None:
    end = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)


def has_ended_one(folder: Path) -> bool:
    return any((folder / "results").glob("batches/*.json")) and statuses(folder)[0] == "ok"


def pids(folder: Path) -> dict[str, list[int]]:
    """By sweep, the measurement processes of its records."""
    store = ResultsStore(folder / "results")
    return {run: sorted(one.record.pid or 0 for one in store.read(run)) for run in store.run_ids()}


def processes(folder: Path) -> dict[str, int | None]:
    """By trial, the process that measured it: another one if it was measured again."""
    store = ResultsStore(folder / "results")
    found = [one.record for run in store.run_ids() for one in store.read(run)]
    return {f"{one.run_id}/{one.trial_id}": one.pid for one in found if one.status is not TrialStatus.INTERRUPTED}


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    (tmp_path / "models.yaml").write_text(FILE, encoding="utf-8")
    return tmp_path


def test_a_killed_batch_goes_on_with_exactly_the_rest_and_a_failure_is_a_row(batch: Path) -> None:
    killed = start(batch, "models.yaml")
    wait_until(lambda: has_ended_one(batch))
    (overview,) = (batch / "results" / "batches").glob("*/overview.md")
    assert "`fake:ok` | ci-micro, changed | ok" in overview.read_text(encoding="utf-8")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (first, before), *_ = sorted(pids(batch).items())

    resumed = start(batch, "models.yaml", "--resume", str(manifest(batch)["batch_id"]))
    _, told = resumed.communicate(timeout=200)

    assert resumed.returncode == 13, told
    assert "2 of 4 sweeps have no winner: fake:=nonsense (failed), fake:=oom (no winner)" in told
    assert statuses(batch) == ["ok", "failed", "no winner", "ok"]
    assert pids(batch)[first] == before
    assert all(len(set(found)) == len(found) == 2 for found in pids(batch).values())
    check = ResultsStore(batch / "results").read_manifest(first).code_check
    assert check is not None, "the killed batch had not come to the winner's code"
    assert "no code that could be run apart" in check.text
    rows = pq.read_table(overview.with_name("batch.parquet")).to_pylist()
    assert [(row["model_id"], row["status"], row["winner"] is None) for row in rows] == [
        ("fake:ok", "ok", False),
        ("fake:=nonsense", "failed", True),
        ("fake:=oom", "no winner", True),
        ("fake:a=slow", "ok", False),
    ]
    assert "cannot 'nonsense'" in rows[1]["reason"]
    html = overview.with_suffix(".html").read_text(encoding="utf-8")
    links = [overview.parent / f"../../reports/{row['run_id']}/report.html" for row in rows if row["status"] == "ok"]
    assert all(link.is_file() and f"{link.parent.name}/report.html" in html for link in links)


SHARED = """\
defaults: {engine: fake, profiles: [ci-micro], context_lengths: [64], output_lengths: [4], dtypes: [float32],
           attentions: [sdpa], search: grid, confirm_rounds: 0}
models: [{model: "fake:=hang", caches: [dynamic], timeout_s: 300}, "fake:ok"]
"""


@pytest.mark.slow
def test_a_sweep_measures_and_is_written_up_on_the_slot_that_another_ones_last_trial_leaves(tmp_path: Path) -> None:
    """The first model's only trial hangs: whatever the second one does, it does meanwhile."""
    (tmp_path / "models.yaml").write_text(SHARED, encoding="utf-8")
    batch = start(tmp_path, "models.yaml", "--slots", "2")
    wait_until(lambda: any((tmp_path / "results").glob("batches/*.json")) and statuses(tmp_path)[1] == "ok")
    assert statuses(tmp_path) == ["measuring", "ok"]
    (report,) = (tmp_path / "results").glob("reports/*/report.html")
    batch.send_signal(signal.SIGINT)
    _, told = batch.communicate(timeout=240)
    assert (batch.returncode, statuses(tmp_path)) == (130, ["interrupted", "ok"]), told
    store = ResultsStore(tmp_path / "results")
    hanging, others = (store.read(run) for run in store.run_ids())
    assert [one.record.status.value for one in hanging] == ["interrupted"], "it ran until Ctrl-C"
    assert [one.record.status.value for one in others] == ["ok", "ok"]
    assert report.parent.name == others[0].record.run_id


@pytest.mark.slow
def test_a_batch_interrupted_twice_leaves_no_sweep_that_seems_to_measure(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(SHARED, encoding="utf-8")
    batch = start(tmp_path, "models.yaml")
    wait_until(lambda: any((tmp_path / "results").glob("batches/*.json")) and "measuring" in statuses(tmp_path))
    batch.send_signal(signal.SIGINT)
    batch.send_signal(signal.SIGTERM)  # two of one kind may come as one
    _, told = batch.communicate(timeout=240)
    assert batch.returncode == 130
    assert "with: kvray batch --resume" in told.splitlines()[-1], told
    (overview,) = (tmp_path / "results" / "batches").glob("*/overview.md")
    assert "measuring" not in statuses(tmp_path)
    assert "measuring" not in overview.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_batch_killed_at_random_moments_measures_nothing_twice(batch: Path) -> None:
    moments = random.Random(1)
    ids: list[str] = []
    measured: dict[str, int | None] = {}
    for _ in range(20):
        one = start(batch, "models.yaml", *(("--resume", ids[0]) if ids else ()))
        time.sleep(moments.uniform(1.0, 9.0))
        one.send_signal(signal.SIGKILL)
        one.communicate()
        if any((batch / "results").glob("batches/*.json")):
            ids = [str(manifest(batch)["batch_id"])]
        now = processes(batch)
        assert {trial: now.get(trial) for trial in measured} == measured
        measured = now
    last = start(batch, "models.yaml", *(("--resume", ids[0]) if ids else ()))
    last.communicate(timeout=300)
    assert statuses(batch) == ["ok", "failed", "no winner", "ok"]
    now = processes(batch)
    assert {trial: now.get(trial) for trial in measured} == measured
    for run in ResultsStore(batch / "results").run_ids():
        records = [one.record for one in ResultsStore(batch / "results").read(run)]
        assert len({record.candidate_id for record in records}) == len(records) == 2


def test_a_dry_run_says_what_each_model_would_measure_and_writes_nothing(batch: Path) -> None:
    told, _ = start(batch, "models.yaml", "--dry-run").communicate(timeout=240)
    assert "fake:ok · ci-micro, changed: 2 candidates" in told
    assert "fake:=nonsense · ci-micro, changed: cannot be measured: The fake engine cannot 'nonsense'" in told
    assert not (batch / "results").exists()
