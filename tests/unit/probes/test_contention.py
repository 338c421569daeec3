"""Who else is on the machine when a sweep starts: one sentence each, none where nothing can be found out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from kvray.candidate import DeviceType
from kvray.probes import cgroups, cpu
from kvray.probes.contention import (
    QUIET_LOOKS,
    QuietWait,
    announced_sweep,
    busy_cpus,
    busy_gpus,
    describe_cpu_load,
    quota_notes,
)
from kvray.probes.gpu import MIB, GpuInfo
from kvray.probes.holds import hold

GPUS = tuple(
    GpuInfo(
        index=index,
        uuid=f"GPU-{index}",
        name="NVIDIA A",
        memory_total_mib=80_000.0,
        compute_capability=(9, 0),
        driver_version="600.1",
    )
    for index in range(2)
)
Nvml = Callable[..., None]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    """Two GPUs; what is given (processes as pid → MiB, …) is true of the first, the other one idles."""

    def stand_in(*, processes: dict[int, float | None], percent: int = 0, used_mib: float = 600.0) -> None:
        listed = [
            SimpleNamespace(pid=pid, usedGpuMemory=None if mib is None else int(mib * MIB))
            for pid, mib in processes.items()
        ]
        answers = SimpleNamespace(
            NVMLError=pynvml.NVMLError,
            nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
            nvmlDeviceGetComputeRunningProcesses=lambda handle: listed if handle == "GPU-0" else [],
            nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=percent if handle == "GPU-0" else 0),
            nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=(used_mib if handle == "GPU-0" else 9) * MIB),
        )
        unknown = [name for name in vars(answers) if not hasattr(pynvml, name)]
        assert not unknown, "only what NVML has may be asked"
        monkeypatch.setattr("kvray.probes.gpu._nvml", lambda: answers)
        monkeypatch.setattr("kvray.probes.gpu.list_gpus", lambda: GPUS)

    return stand_in


def test_a_gpu_where_others_compute_is_called_busy_with_who_and_how_much(nvml: Nvml) -> None:
    nvml(processes={4711: 5120.0}, percent=87, used_mib=5900.0)
    assert busy_gpus("0,1") == (
        "GPU 0 (NVIDIA A) is busy: process 4711 holds 5,120 MiB, utilisation 87 %: what is measured now will be "
        "disturbed.",
    )


def test_memory_that_an_idle_process_holds_is_said_too(nvml: Nvml) -> None:
    nvml(processes={4711: None, 12: 3.0})
    (told,) = busy_gpus("0,1")
    assert "busy: process 12 holds 3 MiB, process 4711 holds memory: " in told


def test_memory_in_use_by_processes_that_nvml_does_not_name_is_said(nvml: Nvml) -> None:
    nvml(processes={}, used_mib=40_000.0)
    assert "busy: 40,000 MiB of its memory are in use: " in busy_gpus("0,1")[0]


def test_a_gpu_that_idles_or_is_not_visible_is_not_mentioned(nvml: Nvml) -> None:
    nvml(processes={}, percent=3)
    assert busy_gpus("0,1") == ()
    nvml(processes={4711: 5120.0}, percent=87)
    assert busy_gpus("1") == busy_gpus("") == ()


def test_what_this_sweep_itself_does_on_a_gpu_is_not_mentioned(nvml: Nvml) -> None:
    nvml(processes={4711: 5120.0}, percent=87)
    assert busy_gpus("0,1", own_pids=(4711,)) == ()


@pytest.mark.parametrize(
    ("used", "wanted", "there", "is_said"),
    [(None, 2, 2, False), (0.1, 2, 2, False), (1.0, 2, 2, True), (4.0, 4, 8, False), (6.0, 4, 8, True)],
)
def test_cpus_are_busy_where_a_trial_would_miss_them(
    used: float | None, wanted: int, there: int, is_said: bool
) -> None:
    told = describe_cpu_load(used, wanted, there)
    expected = f"Other programs keep {used} of {there} CPUs busy: what is measured now will be disturbed."
    assert told == ((expected,) if is_said else ())


def test_a_sample_too_short_for_the_kernel_s_clock_says_nothing() -> None:
    assert busy_cpus(0.0) == ()


# Other sweeps


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_sweep_alone_hears_of_nobody_and_leaves_nothing(cache: Path) -> None:
    with announced_sweep(DeviceType.CPU, "run-a") as others:
        assert others == ()
        assert len(list((cache / "sweeps").iterdir())) == 1
    assert list((cache / "sweeps").iterdir()) == []


def test_a_second_sweep_on_the_same_device_hears_of_the_first(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(processes={})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with announced_sweep(DeviceType.CPU, "run-a"), announced_sweep(DeviceType.CUDA, "run-b") as on_gpu:
        assert on_gpu == ()
        with announced_sweep(DeviceType.CPU, "run-c") as others:
            (told,) = others
            assert told.startswith("Another sweep, run-a of process ")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        with announced_sweep(DeviceType.CUDA, "run-d") as others:
            assert [told.split()[2] for told in others] == ["run-b"]


def test_a_file_that_nobody_holds_any_more_is_not_taken_for_a_sweep_and_removed(cache: Path) -> None:
    with announced_sweep(DeviceType.CPU, "run-a"):
        (own,) = (cache / "sweeps").iterdir()
        dead = own.with_name(own.name.replace("run-a", "run-dead"))
        dead.write_text(own.read_text().replace("run-a", "run-dead"))
        with announced_sweep(DeviceType.CPU, "run-b") as others:
            assert [told.split()[2] for told in others] == ["run-a"]
        assert not dead.exists()


def test_files_that_make_no_sense_are_passed_over(cache: Path) -> None:
    with announced_sweep(DeviceType.CPU, "run-a"):
        (own,) = (cache / "sweeps").iterdir()
        with (
            hold(own.with_name(own.name.replace("run-a", "odd")), {"uses": 7}),
            announced_sweep(DeviceType.CPU, "run-b") as others,
        ):
            assert len(others) == 1


def test_without_a_cache_folder_that_can_be_written_nothing_is_said(cache: Path) -> None:
    cache.write_text("in the way")
    with announced_sweep(DeviceType.CPU, "run-a") as others:
        assert others == ()


@pytest.mark.parametrize(
    ("quota", "chosen", "told"),
    [
        (None, "", None),
        (4.0, "", None),
        (1.0, "1", None),
        (
            1.5,
            "",
            "quota of this control group is 1.5 of the 4 CPUs that are visible: every trial computes with 1 thread",
        ),
        (
            2.0,
            "",
            "every trial computes with 2 threads, because the quota would stop more. Set OMP_NUM_THREADS=2 where",
        ),
        (1.0, "4", "and OMP_NUM_THREADS=4 asks for more: runs will be stopped by the quota and count as disturbed."),
        (0.5, "", "is 0.5 of the 4 CPUs that are visible, less than one thread needs: every run will be stopped by it"),
    ],
)
def test_one_line_says_what_a_cpu_quota_means(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, chosen: str, told: str | None
) -> None:
    monkeypatch.setattr(cgroups, "cpu_quota", lambda: quota)
    monkeypatch.setattr(cpu, "visible_cpus", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    notes = quota_notes()
    assert len(notes) == (told is not None)
    assert all(told in note for note in notes if told)


class BusyUntil:
    """A clock, a pause, and a machine that others keep busy until some second; with a program that comes and goes."""

    def __init__(self, second: float, *, again: tuple[float, ...] = ()) -> None:
        self.now, self.second, self.again = 0.0, second, again
        self.told: list[str] = []

    def __call__(self, device: DeviceType) -> tuple[str, ...]:
        assert device is DeviceType.CPU
        is_busy = self.now < self.second or self.now in self.again
        return describe_cpu_load(1.9 if is_busy else 0.0, 2, 2)

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, most_s: float) -> QuietWait:
        return QuietWait(
            DeviceType.CPU, most_s, tell=self.told.append, look=self, clock=lambda: self.now, pause=self.pause
        )


def test_a_quiet_machine_is_not_waited_for() -> None:
    machine = BusyUntil(0.0)
    machine.wait(600.0).wait()
    assert (machine.now, machine.told) == (0.0, [])


def test_without_time_to_wait_nothing_is_looked_at() -> None:
    machine = BusyUntil(1e9)
    machine.wait(0.0).wait()
    assert (machine.now, machine.told) == (0.0, [])


def test_waiting_ends_when_it_has_been_quiet_for_some_looks_and_tells_each_minute_what_for() -> None:
    machine = BusyUntil(130.0, again=(132.0,))
    machine.wait(600.0).wait()
    assert machine.now == 132.0 + QUIET_LOOKS
    assert machine.told == [
        "Waiting for quiet, 0:00 min of 10:00 min: Other programs keep 1.9 of 2 CPUs busy.",
        "Waiting for quiet, 1:00 min of 10:00 min: Other programs keep 1.9 of 2 CPUs busy.",
        "Waiting for quiet, 2:00 min of 10:00 min: Other programs keep 1.9 of 2 CPUs busy.",
        "It is quiet now: measuring goes on.",
    ]


def test_all_waits_of_a_sweep_together_take_no_longer_than_allowed() -> None:
    machine = BusyUntil(20.0)
    quiet = machine.wait(30.0)
    quiet.wait()
    assert machine.now == 20.0 + QUIET_LOOKS - 1
    machine.second = 1e9
    quiet.wait()
    assert machine.now == 30.0
    assert machine.told[-1] == "It did not become quiet within 0:30 min: measuring anyway."
    assert quiet.still_busy == "Other programs keep 1.9 of 2 CPUs busy"
    quiet.wait()
    assert machine.now == 30.0
