"""Waiting for a CPU, and the load of others: asked of the real system, and of files laid out as by the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from kvray.probes.cpu_load import OtherLoad, OwnThreads, Waited, waited_of

pytestmark = pytest.mark.spawns


def threads_that_waited(folder: Path, *, turns: int = 1, **waited_s: float) -> Path:
    for name, seconds in waited_s.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "schedstat").write_text(f"5000000000 {round(seconds * 1e9)} {turns}\n")
    return folder


def watch_of(*tasks: Path, quotas: Sequence[Path] = ()) -> OwnThreads:
    return OwnThreads(quotas, tasks=lambda: tasks)


@pytest.mark.parametrize(
    ("waited_s", "unused_s", "throttled_s", "waited"),
    [
        (0.0, 2.0, 0.0, Waited(for_others=0.0, for_quota=0.0)),
        (0.4, 1.0, 0.0, Waited(for_others=0.2, for_quota=0.0)),
        (0.4, 1.0, 0.3, Waited(for_others=0.05, for_quota=0.15)),
        (0.4, 1.0, 1.9, Waited(for_others=0.0, for_quota=0.2)),
    ],
)
def test_a_wait_for_a_quota_is_told_from_a_wait_for_others(
    waited_s: float, unused_s: float, throttled_s: float, waited: Waited
) -> None:
    seen = waited_of(waited_s, unused_s=unused_s, throttled_s=throttled_s, passed_s=2.0)
    assert (seen.for_others, seen.for_quota) == pytest.approx((waited.for_others, waited.for_quota))


def test_threads_that_wait_for_each_other_wait_for_nobody_else() -> None:
    """Four threads on two CPUs, which they keep busy alone."""
    assert waited_of(1.0, unused_s=0.02, throttled_s=0.0, passed_s=2.0).for_others == pytest.approx(0.01)
    assert waited_of(1.0, unused_s=-0.01, throttled_s=0.0, passed_s=2.0).for_others == 0.0


def test_the_most_hindered_thread_counts_and_a_new_one_from_its_start(tmp_path: Path) -> None:
    earliest = time.perf_counter()
    watched = watch_of(threads_that_waited(tmp_path, main=3600.0, worker=7200.0))
    latest = time.perf_counter()
    time.sleep(0.01)
    threads_that_waited(tmp_path, main=3600.001, worker=7200.002, born=0.004)
    shortest = time.perf_counter() - latest
    waited = watched.waited()
    longest = time.perf_counter() - earliest
    assert waited is not None
    assert waited.for_others * shortest <= 0.0041
    assert waited.for_others * longest >= 0.0039


def test_what_a_sleeping_thread_takes_to_wake_up_is_no_disturbance(tmp_path: Path) -> None:
    watched = watch_of(threads_that_waited(tmp_path, worker=1.0, turns=100))
    threads_that_waited(tmp_path, worker=1.0 + 200 * 4e-6, turns=300)
    waited = watched.waited()
    assert waited is not None
    assert waited.for_others == 0.0


@pytest.mark.parametrize("content", ["0 0 0\n", "", None])
def test_where_the_kernel_does_not_count_nothing_is_known(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "schedstat").write_text(content)
    assert watch_of(tmp_path).waited() is None
    assert watch_of(tmp_path / "none").waited() is None


def test_where_the_kernel_counts_no_waiting_what_a_quota_took_is_known_all_the_same(tmp_path: Path) -> None:
    stat = tmp_path / "cpu.stat"
    stat.write_text("nr_throttled 1\nthrottled_usec 1000\n")
    watched = watch_of(tmp_path / "none", quotas=[tmp_path])
    stat.write_text("nr_throttled 2\nthrottled_usec 9001000\n")
    waited = watched.waited()
    assert waited is not None
    assert waited.for_quota > 1
    assert waited.for_others == 0.0


SHARING = """
import os, sys, time
from kvray.probes.cpu_load import OwnThreads
other = os.fork()
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
end = time.perf_counter() + 1.0
if other == 0:
    while time.perf_counter() < end: pass
    os._exit(0)
watched = OwnThreads()
end = time.perf_counter() + 0.3
while time.perf_counter() < end: pass
print(watched.waited().for_others)
os.waitpid(other, 0)
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this kernel does not count waiting")
def test_a_program_on_the_same_cpu_makes_a_thread_wait() -> None:
    done = subprocess.run([sys.executable, "-c", SHARING], check=True, capture_output=True, text=True)
    assert float(done.stdout) > 0.2


BUSY = "import time\nend = time.time() + 3\nwhile time.time() < end: pass"


def test_a_program_beside_this_one_shows_as_the_load_of_others() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY]) as other:
        time.sleep(0.5)
        load = OtherLoad()
        time.sleep(1.0)
        seen = load.cpus()
        other.kill()
    assert seen is not None
    assert seen > 0.2, "one busy loop, however many others share the machine"


def test_this_program_is_not_its_own_disturbance() -> None:
    load = OtherLoad()
    own, started = os.times().user, time.perf_counter()
    while time.perf_counter() < started + 0.5:
        pass
    share = (os.times().user - own) / (time.perf_counter() - started)
    seen = load.cpus()
    assert seen is not None
    total = psutil.cpu_count() or 1
    # The kernel counts in ticks.
    assert seen <= total - share + 0.1, "its own seconds are not among those of others"


def test_what_is_over_in_a_moment_is_not_judged_by_itself() -> None:
    assert OtherLoad().cpus() is None


def test_a_moment_is_judged_by_what_was_before_it() -> None:
    load = OtherLoad()
    time.sleep(0.25)
    load.mark()
    assert load.cpus() is not None
