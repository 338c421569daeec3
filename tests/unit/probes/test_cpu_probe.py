"""CPU, memory, priority and peak RSS, asked of the real system."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import psutil
import pytest

from kvray.probes import cgroups, cpu

pytestmark = pytest.mark.spawns

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")


def output_of(script: str) -> list[str]:
    """The words that `script` prints in a fresh interpreter."""
    code = textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.split()


@linux_only
def test_files_of_libraries_are_counted_by_the_pages_that_no_process_has_written_to() -> None:
    """The count by another reader of the same text, and a library that is mapped and read counts from then on."""
    words = output_of(
        """
        import mmap, tempfile
        from kvray.probes.cpu import mapped_libraries_mib
        def by_hand():
            kib, counts = 0, False
            for line in open("/proc/self/smaps"):
                name, *rest = line.split()
                if not name.endswith(":"):
                    counts = len(rest) > 4 and ".so" in rest[4].rpartition("/")[2]
                elif counts and name in ("Rss:", "Anonymous:"):
                    kib += int(rest[0]) * (1 if name == "Rss:" else -1)
            return kib / 1024
        before, same = mapped_libraries_mib(), by_hand()
        with tempfile.NamedTemporaryFile(suffix=".so.6") as file:
            file.write(b"x" * 2**23)
            file.flush()
            mapped = mmap.mmap(file.fileno(), 2**23, access=mmap.ACCESS_READ)
            bytes(mapped)
            print(before, same, mapped_libraries_mib())
        """
    )
    before, same, after = map(float, words[:3])
    assert before == pytest.approx(same, abs=0.1)
    assert 7.5 < after - before < 8.5


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
        cpu._reset_high_water = lambda pid: False
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
    assert 1 <= cpu.available_cpus() <= (os.cpu_count() or 1)
    assert cpu.total_memory_mib() > 0


def test_the_fastest_core_s_clock_is_told_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = cpu.clock_mhz()
    assert clock is None or clock > 0
    monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: [])
    assert cpu.clock_mhz() is None
    monkeypatch.delattr(psutil, "cpu_freq")
    assert cpu.clock_mhz() is None


def quota_of(monkeypatch: pytest.MonkeyPatch, quota: float | None, *, visible: int, chosen: str = "") -> None:
    monkeypatch.setattr(cgroups, "cpu_quota", lambda: quota)
    monkeypatch.setattr(cpu, "visible_cpus", lambda: visible)
    monkeypatch.setenv("OMP_NUM_THREADS", chosen)


@pytest.mark.parametrize(
    ("quota", "visible", "threads", "available"),
    [
        (None, 2, None, 2),
        (1.0, 2, 1, 1),
        (1.9, 2, 1, 1),
        (0.3, 2, 1, 1),
        (2.0, 2, None, 2),
        (8.0, 2, None, 2),
        (3.5, 64, 3, 3),
    ],
)
def test_a_quota_below_the_visible_cpus_leaves_room_for_one_thread_per_whole_cpu(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, visible: int, threads: int | None, available: int
) -> None:
    quota_of(monkeypatch, quota, visible=visible)
    assert (cpu.quota_threads(), cpu.available_cpus()) == (threads, available)


@pytest.mark.parametrize(("chosen", "wanted"), [("", 4), ("1", 1), ("9", 4)])
def test_a_measurement_wants_a_cpu_for_each_of_its_threads_as_far_as_there_are(
    monkeypatch: pytest.MonkeyPatch, chosen: str, wanted: int
) -> None:
    quota_of(monkeypatch, None, visible=4, chosen=chosen)
    assert cpu.wanted_cpus() == wanted
