"""The Slurm script's body, run for real: two Ray nodes on this host, with stand-ins of `srun` and `scontrol`."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kvray.record import TrialStatus
from kvray.store.parquet import ResultsStore

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm" / "kvray.sbatch"
STAND_INS = Path(__file__).with_name("slurm_stand_ins")
SWEEP = ("tune", "fake:x", "--engine", "fake", "--device", "cpu", "--context", "16", "--output-len", "4")
SHORT = ("--repeats", "1", "--attention", "sdpa", "--cache", "dynamic,static", "--dtype", "float32", "--confirm", "0")

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the script needs bash")


class SlurmJob:
    """What `sbatch kvray.sbatch ARGUMENTS…` starts on the first of two nodes."""

    def __init__(self, root: Path, *arguments: str) -> None:
        number = str(random.randrange(10_000_000))
        self._calls, self._log, self.folder = root / "calls", root / "log", Path(f"/tmp/ray-{number}")
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
        slurm = {
            "SLURM_JOB_ID": number,
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": "1",
            "STAND_IN_CALLS": str(self._calls),
        }
        own = {"KVRAY_ENV": sys.prefix, "TMPDIR": "/tmp", "PATH": f"{STAND_INS}:{os.environ['PATH']}"}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", str(SCRIPT), *arguments],
                cwd=root,
                env={**plain, **slurm, **own},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    @property
    def calls(self) -> list[list[str]]:
        """What each `srun` was asked for: the node, then the command."""
        return [line.split() for line in self._calls.read_text().splitlines()]

    def wait(self, timeout_s: float = 240.0) -> int:
        try:
            return self.process.wait(timeout_s)
        finally:
            if self.process.poll() is None:
                self.process.terminate()

    def left_behind(self) -> list[psutil.Process]:
        """Processes of this job's Ray, which ends its own within seconds."""
        deadline = time.monotonic() + 10
        while found := [one for one in psutil.process_iter(["cmdline"]) if self._is_ours(one)]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        return found

    def _is_ours(self, process: psutil.Process) -> bool:
        return any(str(self.folder) in word for word in process.info["cmdline"] or ())


@pytest.mark.slow
def test_a_sweep_runs_on_ray_nodes_that_the_script_starts_and_ends(tmp_path: Path) -> None:
    results = tmp_path / "results"
    job = SlurmJob(tmp_path, *SWEEP, *SHORT, "--search", "grid", "--output", str(results))
    assert job.wait() == 0, job.said
    assert job.left_behind() == []
    assert not job.folder.exists()
    store = ResultsStore(results)
    run_id = store.latest_run_id()
    assert [one.record.status for one in store.read(run_id)] == [TrialStatus.OK] * 2
    started = [(node, "--head" in command) for node, *command in job.calls if "start" in command]
    assert started == [("node1", True), ("node2", False)]
    assert (tmp_path / "results" / "reports" / run_id / "report.html").exists()


@pytest.mark.slow
def test_a_job_whose_time_is_over_writes_its_report(tmp_path: Path) -> None:
    results = tmp_path / "results"
    job = SlurmJob(tmp_path, *SWEEP, "--repeats", "3000", "--output", str(results))
    deadline = time.monotonic() + 240
    while not list(results.glob("runs/*/*.parquet")) and time.monotonic() < deadline:
        assert job.process.poll() is None, job.said
        time.sleep(0.3)
    os.kill(job.process.pid, signal.SIGTERM)
    assert job.wait() == 130, job.said
    assert "Ending in good order" in job.said
    assert list(results.glob("reports/*/report.html")), job.said
    assert job.left_behind() == []


def test_a_job_without_a_command_says_what_to_give(tmp_path: Path) -> None:
    job = SlurmJob(tmp_path)
    assert job.wait() == 2
    assert "say what to run: sbatch kvray.sbatch tune MODEL" in job.said
