"""CPU, memory, priority and peak RSS, asked of the real system; cgroup limits from files laid out as by the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from kvray.probes import cpu

pytestmark = pytest.mark.spawns

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")


def output_of(script: str) -> list[str]:
    """The words that `script` prints in a fresh interpreter."""
    code = textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.split()


@linux_only
def test_the_peak_is_that_of_the_window_and_not_of_the_process_s_life() -> None:
    words = output_of(
        """
        from kvray.probes.cpu import PeakRss
        rss = PeakRss()
        rss.reset()
        block = b"x" * (300 * 2**20)
        del block
        first = rss.read_mib()
        rss.reset()
        second = rss.read_mib()
        block = b"x" * (100 * 2**20)
        del block
        print(first, second, rss.read_mib(), rss.is_exact)
        """
    )
    first, second, third = map(float, words[:3])
    assert words[3] == "True"
    assert first - second > 290
    assert 95 < third - second < 120


def test_where_the_kernel_s_mark_cannot_be_set_back_the_peak_is_the_highest_seen_and_says_so() -> None:
    words = output_of(
        """
        from kvray.probes import cpu
        cpu._reset_high_water = lambda: False
        rss = cpu.PeakRss()
        rss.reset()
        start = rss.read_mib()
        block = b"x" * (100 * 2**20)
        held = rss.read_mib()
        del block
        print(start, held, rss.read_mib(), rss.is_exact)
        """
    )
    start, held, after = map(float, words[:3])
    assert words[3] == "False"
    assert held - start > 95
    assert after == held


def test_a_peak_is_not_called_exact_before_a_window_is_open() -> None:
    assert not cpu.PeakRss().is_exact


@linux_only
@pytest.mark.parametrize("answer", ["refuse", "ignore"])
def test_a_sandbox_that_refuses_or_ignores_the_reset_is_noticed(answer: str) -> None:
    words = output_of(
        f"""
        from pathlib import Path
        from kvray.probes import cpu
        write_text = Path.write_text
        def sandboxed(self, *args, **kwargs):
            if {answer!r} == "refuse":
                raise PermissionError("no")
            return 1
        block = b"x" * (100 * 2**20)
        del block
        Path.write_text = sandboxed
        rss = cpu.PeakRss()
        rss.reset()
        print(rss.is_exact, rss.read_mib() < 100)
        """
    )
    assert words == ["False", "True"]


RENICED = """
    import os
    from kvray.probes.cpu import set_normal_priority
    os.nice(7 - os.nice(0))
    {before}
    print(set_normal_priority(), os.nice(0))
"""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="takes root")
def test_a_raised_niceness_is_undone_where_that_is_permitted() -> None:
    assert output_of(RENICED.format(before="")) == ["0", "0"]


@pytest.mark.skipif(os.name != "posix", reason="niceness is POSIX")
def test_a_niceness_that_may_not_be_lowered_stays_and_is_told() -> None:
    drop_privileges = "os.geteuid() == 0 and os.setuid(65534)"
    assert output_of(RENICED.format(before=drop_privileges)) == ["7", "7"]


@linux_only
def test_cpus_outside_the_affinity_are_not_available() -> None:
    assert output_of(
        """
        import os
        from kvray.probes.cpu import available_cpus
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(available_cpus())
        """
    ) == ["1"]


def test_this_machine_has_a_name_cores_and_memory() -> None:
    assert cpu.cpu_name().strip()
    assert 1 <= cpu.physical_cores() <= (os.cpu_count() or 1)
    assert 1 <= cpu.available_cpus() <= (os.cpu_count() or 1)
    assert cpu.total_memory_mib() > 0


def test_the_fastest_core_s_clock_is_told_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = cpu.clock_mhz()
    assert clock is None or clock > 0
    monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: [])
    assert cpu.clock_mhz() is None
    monkeypatch.delattr(psutil, "cpu_freq")
    assert cpu.clock_mhz() is None


def lay_out(mount: Path, own: str, files: dict[str, str]) -> Path:
    """A cgroup mount under `mount` and a `/proc/self/cgroup` with the lines of `own`."""
    for name, content in files.items():
        path = mount / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    mount.mkdir(exist_ok=True)
    (mount / "self").write_text(own)
    return mount / "self"


V2, V1 = "0::/pod/app\n", "5:memory:/pod/app\n4:cpu,cpuacct:/pod/app\n"


@pytest.mark.parametrize(
    ("own", "files", "quotas"),
    [
        (V2, {"pod/app/cpu.max": "150000 100000"}, [1.5]),
        (V2, {"pod/app/cpu.max": "max 100000", "pod/cpu.max": "200000 100000"}, [2.0]),
        (V2, {"cpu.max": "50000 100000"}, [0.5]),
        (V2, {"pod/app/cpu.max": "max 100000"}, []),
        (V2, {}, []),
        (V1, {"cpu/pod/app/cpu.cfs_quota_us": "300000", "cpu/pod/app/cpu.cfs_period_us": "100000"}, [3.0]),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
    ],
)
def test_cpu_quotas_are_found_in_the_own_cgroup_and_above(
    tmp_path: Path, own: str, files: dict[str, str], quotas: list[float]
) -> None:
    folders = cpu._cgroup_folders("cpu", lay_out(tmp_path, own, files), tmp_path)
    assert [quota for folder in folders if (quota := cpu._cpu_quota(folder)) is not None] == quotas


@pytest.mark.parametrize(
    ("own", "files", "limits"),
    [
        (V2, {"pod/memory.max": str(2**30), "pod/app/memory.max": "max"}, [1024.0]),
        (V1, {"memory/pod/app/memory.limit_in_bytes": str(2**29)}, [512.0]),
        (V2, {}, []),
    ],
)
def test_memory_limits_are_found_in_the_own_cgroup_and_above(
    tmp_path: Path, own: str, files: dict[str, str], limits: list[float]
) -> None:
    folders = cpu._cgroup_folders("memory", lay_out(tmp_path, own, files), tmp_path)
    assert [limit for folder in folders if (limit := cpu._memory_limit_mib(folder)) is not None] == limits


def test_a_system_without_cgroups_limits_nothing(tmp_path: Path) -> None:
    assert cpu._cgroup_folders("cpu", tmp_path / "none", tmp_path) == []


BUSY = "import time\nend = time.time() + 3\nwhile time.time() < end: pass"


def test_a_program_beside_this_one_shows_as_the_load_of_others() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY]) as other:
        time.sleep(0.5)
        load = cpu.OtherLoad()
        time.sleep(1.0)
        seen = load.cpus()
        other.kill()
    assert seen is not None
    assert seen > 0.2, "one busy loop, however many others share the machine"


def test_this_program_is_not_its_own_disturbance() -> None:
    load = cpu.OtherLoad()
    own = os.times()
    end = time.perf_counter() + 0.5
    while time.perf_counter() < end:
        pass
    spent = os.times().user - own.user
    seen = load.cpus()
    assert seen is not None
    total = psutil.cpu_count() or 1
    assert seen <= total - spent / 0.6, "its own seconds are not among those of others"


def test_what_is_over_in_a_moment_is_not_judged() -> None:
    assert cpu.OtherLoad().cpus() is None


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({"g/memory.events": "low 0\nmax 9\noom 5\noom_kill 4\noom_group_kill 0\n"}, 4),
        ({"g/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "memory.events": "oom_kill 7"}, 2),
        ({"memory.events": "oom 8\noom_kill 7\n"}, 7),
        ({"vmstat": "nr_free_pages 12\noom_kill 3\n"}, 3),
        ({"vmstat": "nr_free_pages 12\n"}, None),
        ({}, None),
    ],
)
def test_the_kernels_kills_are_counted_where_it_tells(tmp_path: Path, files: dict[str, str], kills: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu._oom_kills([tmp_path / "g", tmp_path], tmp_path / "vmstat") == kills


@pytest.mark.skipif(not Path("/proc/vmstat").exists(), reason="Linux tells them")
def test_a_linux_tells_the_kernels_kills() -> None:
    assert (cpu.kernel_oom_kills() or 0) >= 0
    assert cpu.kernel_oom_kills() is not None
