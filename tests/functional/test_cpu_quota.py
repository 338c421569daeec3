"""A real CPU quota below the visible CPUs, as a container has it. Skipped where no control group can be made."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvray.probes import cgroups, cpu
from kvray.store.parquet import ResultsStore

Limited = Callable[..., "subprocess.CompletedProcess[str]"]
PERIOD_US = 100_000


@pytest.fixture
def limited(environment: dict[str, str]) -> Iterator[Limited]:
    """Run a Python program that, with all it starts, has `cpus` CPUs' worth of time."""
    folder = _make_group()
    plain = {name: value for name, value in environment.items() if name != "OMP_NUM_THREADS"}

    def run(*arguments: str | Path, cpus: float) -> subprocess.CompletedProcess[str]:
        _set_quota(folder, cpus)
        enter = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        command = ["sh", "-c", enter, folder, sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=plain)

    yield run
    deadline = time.monotonic() + 240
    while folder.exists() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            folder.rmdir()
        time.sleep(0.05)


def _make_group() -> Path:
    """A new group at the top of the hierarchy that limits CPU time."""
    above = cgroups.group_folders("cpu") or (Path("/sys/fs/cgroup"),)
    version_1 = [one for one in above if (one / "cpu.cfs_quota_us").exists()]
    folder = (version_1 or above)[-1] / f"kvray-test-{os.getpid()}"
    try:
        folder.mkdir()
        _set_quota(folder, 1.0)
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"no control group with a CPU quota can be made here: {error}")
    return folder


def _set_quota(folder: Path, cpus: float) -> None:
    if (folder / "cpu.cfs_quota_us").exists():
        (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (folder / "cpu.cfs_quota_us").write_text(str(int(cpus * PERIOD_US)))
    else:
        (folder / "cpu.max").write_text(f"{int(cpus * PERIOD_US)} {PERIOD_US}")


@pytest.mark.skipif(cpu.visible_cpus() < 2, reason="takes two CPUs, one of them beyond the quota")
def test_what_the_machine_offers_is_less_than_it_shows(limited: Limited) -> None:
    lines = limited("-m", "kvray", "info", "--device", "cpu", cpus=1.5).stdout.splitlines()
    told = {line[:14].strip(): line[14:].strip() for line in lines if line[:14].strip() in ("CPUs", "CPU quota")}
    assert told == {"CPUs": "1", "CPU quota": f"1.5 of the {cpu.visible_cpus()} CPUs that are visible"}


THROTTLED = """
import time
from kvray.candidate import DeviceType
from kvray.probes.disturbance import TrialWatch
run = TrialWatch(DeviceType.CPU).start_run()
end = time.process_time() + 0.05
while time.process_time() < end: pass
print(run.finish().disturbance)
"""


def test_a_run_that_its_quota_stopped_is_disturbed_and_says_so(limited: Limited) -> None:
    assert "the CPU quota stopped a thread for " in limited("-c", THROTTLED, cpus=0.05).stdout


@pytest.mark.slow  # a whole sweep; its parts are unit tests
@pytest.mark.skipif(cpu.visible_cpus() < 2, reason="takes two CPUs, one of them beyond the quota")
def test_trials_have_as_many_threads_as_the_quota_has_cpus_and_one_line_says_so(
    limited: Limited, tiny_model: str, tmp_path: Path
) -> None:
    options = "--profile ci-micro --context 32 --output-len 4 --repeats 1 --cache dynamic --confirm 0 --no-forecast"
    options += " --no-check-snippet"
    done = limited("-m", "kvray", "tune", tiny_model, *options.split(), "--output", tmp_path, cpus=1.0)
    told = [line for line in done.stderr.splitlines() if "quota" in line]
    assert len(told) == 1
    assert "is 1 of the " in told[0]
    assert "every trial computes with 1 thread" in told[0]
    store = ResultsStore(str(tmp_path))
    records = [one.record for one in store.read(store.latest_run_id()) if one.record.status.was_launched]
    assert {(one.threads, one.cpus, one.cpu_quota) for one in records} == {(1, 1, 1.0)}
