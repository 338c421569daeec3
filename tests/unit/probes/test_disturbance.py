"""What calls a run disturbed. The readings come from functions of `kvray.probes` that are replaced here."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil
import pytest

from kvray.candidate import DeviceType
from kvray.probes import cgroups, cpu, gpu
from kvray.probes.cpu_load import OtherLoad, OwnThreads, Waited
from kvray.probes.disturbance import DeviceState, TrialWatch
from kvray.probes.gpu import ClockEvent, GpuInfo
from kvray.probes.own_processes import OwnProcesses

NO_EVENT = ClockEvent(0)
OURS, FOREIGN, HOST_ID = os.getpid(), 4711, 990_017


def gpu_of(index: int) -> GpuInfo:
    return GpuInfo(
        index=index,
        uuid=f"GPU-{index}",
        name="A GPU",
        memory_total_mib=1024.0,
        compute_capability=(9, 0),
        driver_version="600.1",
    )


@dataclass
class Machine:
    """What the probes answer, per GPU where there are several; every reading of the energy counter adds 500 J."""

    gpus: tuple[GpuInfo, ...] = (gpu_of(0),)
    pids: set[int] = field(default_factory=set)
    children: set[int] = field(default_factory=set)
    events: ClockEvent | None = NO_EVENT
    clocks_mhz: tuple[float | None, ...] = (1980.0,)
    temperature_c: float | None = 60.0
    power_w: float | None = 300.0
    energy_mj: int | None = 0
    energy_step_mj: int = 500_000
    others_cpus: float | None = 0.0
    available_cpus: int = 2
    total_cpus: int = 2
    cpu_mhz: float | None = 3000.0
    waited: Waited | None = None
    chosen_threads: int | None = None

    def count_energy(self) -> int | None:
        if self.energy_mj is not None:
            self.energy_mj += self.energy_step_mj
        return self.energy_mj


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    answers = {
        "visible_gpus": lambda value: machine.gpus,
        "other_processes": lambda one, own_pids: tuple(sorted(machine.pids)),
        "clock_events": lambda one: machine.events,
        "sm_clock_mhz": lambda one: machine.clocks_mhz[one.index],
        "temperature_c": lambda one: machine.temperature_c,
        "power_w": lambda one: machine.power_w,
        "energy_mj": lambda one: machine.count_energy(),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(gpu, name, answer)
    monkeypatch.setattr(cpu, "available_cpus", lambda: machine.available_cpus)
    monkeypatch.setattr(cpu, "clock_mhz", lambda: machine.cpu_mhz)
    monkeypatch.setattr(cpu, "openmp_threads", lambda: machine.chosen_threads)
    monkeypatch.setattr(cpu, "machine_cpus", lambda: machine.total_cpus)
    monkeypatch.setattr(cgroups, "quota_folders", lambda: ())
    monkeypatch.setattr(OtherLoad, "cpus", lambda self: machine.others_cpus)
    monkeypatch.setattr(OwnThreads, "waited", lambda self: machine.waited)
    monkeypatch.setattr(OwnProcesses, "pids", lambda self: (OURS, *machine.children))
    return machine


def watch_on(machine: Machine, device: DeviceType = DeviceType.CUDA) -> TrialWatch:
    """A watch opened before this process is on the GPU; then it is, by its own id."""
    watch = TrialWatch(device)
    machine.pids.add(OURS)
    return watch


def disturbance(watch: TrialWatch) -> str | None:
    return watch.start_run().finish().disturbance


def test_a_calm_run_has_no_disturbance(machine: Machine) -> None:
    assert disturbance(watch_on(machine)) is None
    assert disturbance(watch_on(machine, DeviceType.CPU)) is None


@pytest.mark.parametrize("device", list(DeviceType))
@pytest.mark.parametrize(
    ("others", "available", "total", "reason"),
    [
        (None, 2, 2, None),
        (0.05, 2, 2, None),
        (0.9, 2, 2, "other programs used 0.9 of 2 CPUs"),
        (0.31, 2, 2, "other programs used 0.3 of 2 CPUs"),
        (0.9, 64, 64, None),
        (20.0, 4, 64, None),
        (63.0, 4, 64, "other programs used 63.0 of 64 CPUs"),
    ],
)
def test_others_disturb_when_they_take_a_good_part_of_the_cpus_that_a_run_may_use(
    machine: Machine, device: DeviceType, others: float | None, available: int, total: int, reason: str | None
) -> None:
    machine.others_cpus, machine.available_cpus, machine.total_cpus = others, available, total
    assert disturbance(watch_on(machine, device)) == reason


@pytest.mark.parametrize("device", list(DeviceType))
@pytest.mark.parametrize(
    ("for_others", "for_quota", "reason"),
    [
        (0.09, 0.09, None),
        (0.23, 0.0, "other programs kept a thread from a CPU for 23 % of the run"),
        (0.01, 0.48, "the CPU quota stopped a thread for 48 % of the run"),
    ],
)
def test_a_thread_that_waited_for_a_cpu_has_been_disturbed_however_short_the_run(
    machine: Machine, device: DeviceType, for_others: float, for_quota: float, reason: str | None
) -> None:
    machine.others_cpus, machine.waited = None, Waited(for_others=for_others, for_quota=for_quota)
    assert disturbance(watch_on(machine, device)) == reason


def test_what_others_used_is_told_rather_than_how_long_that_made_a_thread_wait(machine: Machine) -> None:
    machine.others_cpus, machine.waited = 0.9, Waited(for_others=0.4, for_quota=0.3)
    assert disturbance(watch_on(machine, DeviceType.CPU)) == (
        "other programs used 0.9 of 2 CPUs; the CPU quota stopped a thread for 30 % of the run"
    )


def test_others_may_use_the_cpus_that_a_trials_threads_do_not_want(machine: Machine) -> None:
    """One thread under a quota, or by the user's choice, on a machine that shows two CPUs."""
    machine.others_cpus, machine.available_cpus = 1.0, 1
    assert disturbance(watch_on(machine, DeviceType.CPU)) is None
    machine.available_cpus, machine.chosen_threads = 2, 1
    assert disturbance(watch_on(machine, DeviceType.CPU)) is None
    machine.others_cpus = 1.6
    assert disturbance(watch_on(machine, DeviceType.CPU)) == "other programs used 1.6 of 2 CPUs"


def test_other_trials_on_other_gpus_do_not_disturb_while_cpus_are_left(machine: Machine) -> None:
    machine.available_cpus = machine.total_cpus = 16
    machine.others_cpus = 7.0
    assert disturbance(watch_on(machine)) is None
    assert disturbance(watch_on(machine, DeviceType.CPU)) == "other programs used 7.0 of 16 CPUs"


def test_a_process_that_was_on_the_gpu_before_is_named(machine: Machine) -> None:
    machine.pids = {FOREIGN}
    assert disturbance(watch_on(machine)) == "process 4711 computes on the same GPU"


def test_a_process_that_appears_during_a_run_is_named(machine: Machine) -> None:
    watch = watch_on(machine)
    run = watch.start_run()
    machine.pids.add(FOREIGN)
    assert run.finish().disturbance == "process 4711 computes on the same GPU"
    machine.pids.remove(FOREIGN)
    assert disturbance(watch) is None


def test_a_process_that_leaves_during_a_run_has_disturbed_it(machine: Machine) -> None:
    watch = watch_on(machine)
    machine.pids.add(FOREIGN)
    run = watch.start_run()
    machine.pids.remove(FOREIGN)
    assert run.finish().disturbance == "process 4711 computes on the same GPU"


def test_own_children_on_the_gpu_are_not_foreign(machine: Machine) -> None:
    watch = watch_on(machine)
    machine.children = {5001, 5002}
    machine.pids |= machine.children
    assert disturbance(watch) is None
    machine.pids.remove(OURS)
    assert disturbance(watch) is None, "an engine may compute in its children alone"


def in_a_container(machine: Machine, *before: int) -> TrialWatch:
    """A watch on a GPU where this process is listed, later, under an id that it does not know."""
    machine.pids = set(before)
    watch = TrialWatch(DeviceType.CUDA)
    machine.pids.add(HOST_ID)
    return watch


def test_in_a_container_the_own_process_under_its_unknown_id_is_not_foreign(machine: Machine) -> None:
    assert disturbance(in_a_container(machine)) is None


def test_in_a_container_where_nvml_lists_nobody_nobody_is_foreign(machine: Machine) -> None:
    watch = TrialWatch(DeviceType.CUDA)
    assert disturbance(watch) is None


def test_in_a_container_what_was_there_before_is_foreign(machine: Machine) -> None:
    assert disturbance(in_a_container(machine, FOREIGN)) == "process 4711 computes on the same GPU"


def test_in_a_container_what_was_there_before_and_left_is_forgotten(machine: Machine) -> None:
    watch = in_a_container(machine, FOREIGN)
    machine.pids.remove(FOREIGN)
    assert disturbance(watch) is None


def test_in_a_container_at_most_as_many_new_ones_are_ours_as_we_have_processes(machine: Machine) -> None:
    watch = in_a_container(machine)
    machine.pids.add(FOREIGN)
    assert disturbance(watch) == "another process computes on the same GPU"
    machine.children = {12}
    assert disturbance(watch) is None


def test_on_a_cpu_the_gpus_of_the_machine_do_not_matter(machine: Machine) -> None:
    machine.pids, machine.events = {FOREIGN}, ClockEvent.HW_THERMAL
    conditions = watch_on(machine, DeviceType.CPU).start_run().finish()
    assert (conditions.disturbance, conditions.energy_j) == (None, None)


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        (ClockEvent.IDLE, None),
        (ClockEvent.POWER_CAP, None),
        (ClockEvent.SW_THERMAL, "thermal throttling"),
        (ClockEvent.HW_THERMAL | ClockEvent.HW_SLOWDOWN, "thermal throttling"),
        (ClockEvent.POWER_BRAKE | ClockEvent.HW_SLOWDOWN, "power-brake throttling"),
        (ClockEvent.HW_SLOWDOWN, "hardware slowdown"),
        (ClockEvent.HW_SLOWDOWN | ClockEvent.SW_THERMAL, "hardware slowdown; thermal throttling"),
        (None, None),
    ],
)
def test_throttling_from_outside_disturbs(machine: Machine, events: ClockEvent | None, reason: str | None) -> None:
    machine.events = events
    assert disturbance(watch_on(machine)) == reason


def test_throttling_that_ends_within_a_run_has_disturbed_it(machine: Machine) -> None:
    machine.events = ClockEvent.HW_THERMAL
    run = watch_on(machine).start_run()
    machine.events = NO_EVENT
    assert run.finish().disturbance == "thermal throttling"


def clocks_after_runs(machine: Machine, *clocks_mhz: float | None) -> list[str | None]:
    watch, seen = watch_on(machine), []
    for mhz in clocks_mhz:
        machine.clocks_mhz = (mhz,)
        seen.append(disturbance(watch))
    return seen


def test_a_clock_that_falls_by_more_than_a_tenth_disturbs(machine: Machine) -> None:
    assert clocks_after_runs(machine, 1980.0, 1800.0, 1410.0, None, 1980.0) == [
        None,
        None,
        "SM clock fell from 1980 to 1410 MHz",
        None,
        None,
    ]


@pytest.mark.parametrize("events", [ClockEvent.IDLE, ClockEvent.POWER_CAP])
def test_a_clock_that_is_low_by_idleness_or_the_run_s_own_power_does_not(machine: Machine, events: ClockEvent) -> None:
    watch = watch_on(machine)
    assert disturbance(watch) is None
    machine.events, machine.clocks_mhz = events, (345.0,)
    assert disturbance(watch) is None


def test_a_cpu_clock_that_falls_by_more_than_a_quarter_disturbs(machine: Machine) -> None:
    watch = watch_on(machine, DeviceType.CPU)
    seen = []
    for mhz in (3000.0, 2600.0, 1200.0, None):
        machine.cpu_mhz = mhz
        seen.append(disturbance(watch))
    assert seen == [None, None, "CPU clock fell from 3000 to 1200 MHz", None]


def test_all_reasons_are_told(machine: Machine) -> None:
    machine.pids, machine.events, machine.others_cpus = {FOREIGN}, ClockEvent.HW_THERMAL, 1.5
    assert disturbance(watch_on(machine)) == (
        "other programs used 1.5 of 2 CPUs; process 4711 computes on the same GPU; thermal throttling"
    )


def test_energy_is_what_the_counters_of_all_visible_gpus_gained(machine: Machine) -> None:
    machine.gpus, machine.clocks_mhz = (gpu_of(0), gpu_of(1)), (1980.0, 1980.0)
    # The counters stand at 0.5 and 1 kJ before, at 1.5 and 2 kJ after the run.
    assert watch_on(machine).start_run().finish().energy_j == 2000.0


def test_without_a_counter_or_a_gpu_there_is_no_energy(machine: Machine) -> None:
    machine.energy_mj = None
    assert watch_on(machine).start_run().finish().energy_j is None
    machine.gpus, machine.energy_mj = (), 0
    assert watch_on(machine).start_run().finish().energy_j is None


def test_a_run_too_short_for_the_counter_to_move_has_no_energy(machine: Machine) -> None:
    machine.energy_step_mj = 0
    assert watch_on(machine).start_run().finish().energy_j is None


def test_the_device_s_state_is_summed_up_over_runs(machine: Machine) -> None:
    machine.gpus = (gpu_of(0), gpu_of(1))
    watch = watch_on(machine)
    assert watch.device_state == DeviceState()
    for clocks, celsius, watts in [((1980.0, 1950.0), 60.0, 300.0), ((1900.0, 1980.0), 70.0, 350.0)]:
        machine.clocks_mhz, machine.temperature_c, machine.power_w = clocks, celsius, watts
        watch.start_run().finish()
    assert watch.device_state == DeviceState(clock_mhz=1925.0, temperature_c=70.0, power_w=650.0)


def test_on_a_cpu_the_device_s_state_is_not_known(machine: Machine) -> None:
    watch = watch_on(machine, DeviceType.CPU)
    watch.start_run().finish()
    assert watch.device_state == DeviceState()


BUSY = "import time\nend = time.time() + 20\nwhile time.time() < end: pass"


def busy_programs(number: int) -> Sequence[int]:
    """Ids of programs that no process of ours has started: the shell that did has ended."""
    shell = f"{shlex.quote(sys.executable)} -c {shlex.quote(BUSY)} >&2 & echo $!"
    return [int(subprocess.check_output(["sh", "-c", shell])) for _ in range(number)]


@pytest.mark.spawns
def test_real_programs_that_keep_every_cpu_busy_disturb_a_run() -> None:
    others = busy_programs(psutil.cpu_count() or 1)
    try:
        time.sleep(0.5)
        run = TrialWatch(DeviceType.CPU).start_run()
        time.sleep(1.0)
        reason = run.finish().disturbance
    finally:
        for other in others:
            os.kill(other, signal.SIGKILL)
    assert reason is not None
    assert reason.startswith("other programs used ")
