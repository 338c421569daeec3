from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from kvray.trial import memory_watch
from kvray.trial.memory_watch import SMALLEST_MIB, MemoryWatch, default_floor_mib


@pytest.mark.parametrize(("total_mib", "floor_mib"), [(512, 25.6), (8192, 256), (24_000, 480), (512_000, 10_240)])
def test_the_floor_is_a_share_of_the_memory_and_modest_where_that_is_small(total_mib: float, floor_mib: float) -> None:
    assert default_floor_mib(total_mib) == pytest.approx(floor_mib)


class Machine:
    """Memory by numbers, in place of the probes."""

    def __init__(self, patch: pytest.MonkeyPatch, *, left_mib: float) -> None:
        self.left_mib, self.held_mib, self.kills = left_mib, 0.0, 3 if left_mib else None
        patch.setattr(memory_watch, "available_memory_mib", lambda: self.left_mib)
        patch.setattr(memory_watch, "total_memory_mib", lambda: 20_000.0)
        patch.setattr(memory_watch, "_held_mib", lambda pid: self.held_mib)
        patch.setattr(memory_watch, "kernel_oom_kills", lambda: self.kills)

    def shortage(self, watch: MemoryWatch) -> str | None:
        return watch.shortage(lambda: [os.getpid()])


def test_the_trial_that_took_most_of_the_memory_must_end(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, left_mib=10_000)
    watch = MemoryWatch()
    machine.left_mib, machine.held_mib = 500.0, 9500.0
    assert machine.shortage(watch) is None, "above the floor"
    machine.left_mib = 300.0
    assert machine.shortage(watch) == (
        "it held 9,500 MiB of host memory and left 300 MiB free, under the floor of 400 MiB; killed before the kernel "
        "had to"
    )


@pytest.mark.parametrize(("left_before_mib", "held_mib"), [(10_000.0, 4800.0), (450.0, SMALLEST_MIB - 1)])
def test_memory_that_others_took_is_no_reason(
    monkeypatch: pytest.MonkeyPatch, left_before_mib: float, held_mib: float
) -> None:
    machine = Machine(monkeypatch, left_mib=left_before_mib)
    watch = MemoryWatch()
    machine.left_mib, machine.held_mib = 300.0, held_mib
    assert machine.shortage(watch) is None


def test_the_kernels_kills_count_from_the_trials_start(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, left_mib=10_000)
    watch = MemoryWatch()
    assert watch.kernel_killed() is False
    machine.kills = 4
    assert watch.kernel_killed() is True
    machine.kills = None
    assert watch.kernel_killed() is None


def test_memory_of_a_process_that_is_gone_is_none() -> None:
    assert memory_watch._held_mib(2**22 + 1) == 0.0
    assert memory_watch._held_mib(os.getpid()) > 1.0


def test_anonymous_shared_memory_is_held_and_mapped_files_are_not(tmp_path: Path) -> None:
    size = 64 * 2**20
    before = memory_watch._held_mib(os.getpid())
    with mmap.mmap(-1, size) as shared:
        shared.write(b"x" * size)
        assert memory_watch._held_mib(os.getpid()) - before > 48, "the rest of the process may grow meanwhile"
    file = tmp_path / "weights"
    file.write_bytes(b"x" * size)
    before = memory_watch._held_mib(os.getpid())
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[::4096]) == size // 4096 * ord("x")
        assert memory_watch._held_mib(os.getpid()) - before < 16
