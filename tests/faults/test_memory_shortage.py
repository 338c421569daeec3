"""Real memory, really taken: a trial that takes too much ends as `oom`, whoever notices first."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_trial_process import Start, ended, launcher, start, wait_until_gone

from kvray.probes.cpu import available_memory_mib
from kvray.record import Phase, TrialStatus
from kvray.trial.events import RungFinished
from kvray.trial.memory_watch import MemoryWatch

__all__ = ["launcher", "start"]
CGROUPS = Path("/sys/fs/cgroup")
LIMIT_MIB = 768


@pytest.mark.skipif(available_memory_mib() < 6000, reason="wants 4 GiB to spare, should the watch not work")
def test_a_trial_that_takes_the_last_memory_is_killed_and_says_how_much_it_held(start: Start) -> None:
    process = start("dynamic=memory", memory=MemoryWatch(floor_mib=available_memory_mib() - 512))
    event = ended(process)
    assert (event.status, event.phase) == (TrialStatus.OOM, Phase.WARMUP)
    assert str(event.message).startswith("it held ")
    assert "under the floor of" in str(event.message)
    assert wait_until_gone(process.pid) == []
    assert isinstance(start("ok").advance(), RungFinished)


def test_a_small_trial_does_not_end_for_memory_that_others_hold(start: Start) -> None:
    process = start("ok", timeout_s=240.0, memory=MemoryWatch(floor_mib=available_memory_mib() + 10_000))
    time.sleep(1.0)  # so that a look is due
    assert isinstance(process.advance(), RungFinished)


OWNER = """
import sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text("0")
sys.path[:0] = [{tests!r}]
from test_trial_process import spec_of
from kvray.testing.fake import FakeAdapter
from kvray.trial.memory_watch import MemoryWatch
from kvray.trial.process import Launcher, TrialProcess
launcher = Launcher(FakeAdapter())
for number in range(2):
    log = Path(sys.argv[2], f"{{number}}.log")
    process = TrialProcess(launcher, spec_of("dynamic=memory"), log, memory=MemoryWatch(floor_mib=0))
    event = process.advance()
    process.close()
    print(event.status, event.phase, event.message, sep="; ", flush=True)
"""


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A control group in which processes can have `LIMIT_MIB` together."""
    version_1 = (CGROUPS / "memory").is_dir()
    folder = (CGROUPS / "memory" if version_1 else CGROUPS) / f"kvray-test-{os.getpid()}"
    limit = "memory.limit_in_bytes" if version_1 else "memory.max"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(LIMIT_MIB * 2**20))
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    yield folder
    deadline = time.monotonic() + 240
    while folder.exists() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            folder.rmdir()
        time.sleep(0.05)


def test_a_trial_that_the_kernel_killed_for_want_of_memory_is_oom_and_the_next_one_runs(
    small_cgroup: Path, tmp_path: Path
) -> None:
    code = OWNER.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", code, str(small_cgroup), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.splitlines() == ["oom; warmup; killed by the kernel's out-of-memory killer"] * 2, done.stderr
