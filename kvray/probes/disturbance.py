"""Decides whether a run was disturbed, and reads the GPUs' energy, clocks, temperature and power around it.

Everything is read right before and right after a run, by the thread that measures: a sampling thread would take the
interpreter's lock from the very loop that is timed. So what comes and goes within a run is not seen, unless it leaves a
trace in a counter (waiting for a CPU, CPU time, energy) or in the state after it (throttling, clocks, processes).

Whose process is whose: ours are this process, those that the engine names, and all that these have started. On a GPU
where NVML lists one of them, all others are foreign. In a container with process ids of its own it lists none (see
`kvray.probes.gpu`). Then a process that was on the GPU before this trial touched it is foreign for certain, and of
those that came later as many are taken for ours as we have processes; only what exceeds that number is foreign. A
program that starts beside an engine with many processes may so be overlooked; a trial alone on its GPU is never called
disturbed by itself.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from kvray.candidate import DeviceType
from kvray.probes import cgroups, cpu, gpu
from kvray.probes.cpu_load import OtherLoad, OwnThreads, Waited
from kvray.probes.gpu import ClockEvent, GpuInfo
from kvray.probes.own_processes import OwnProcesses

DISTURBING_SHARE = 0.15
"""A second program that computes on the same two cores was seen to slow a generation ten times; an idle machine with
Ray and a driver that draws its progress uses a few per cent."""
DISTURBING_WAIT = 0.10
"""Share of a run's time for which a thread had no CPU. On an idle machine threads waited for less than 1 % of it,
beside one other program that computes for 40 % and more (docs/quiet.md)."""
CPUS_BESIDE_A_GPU = 2
"""What a process needs that feeds a GPU: one to launch kernels, one for all its other threads."""
GPU_CLOCK_FALL = 0.10
CPU_CLOCK_FALL = 0.25
"""Wider than a GPU's: a core's turbo moves by a tenth with what its neighbours do."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Under which one run took place.

    Attributes:
        disturbance: what changed, for people, several reasons joined by `; `; `None`: nothing, as far as can be told.
        energy_j: used by the visible GPUs together, as whole boards; `None` without a counter, or when it did not move.
    """

    disturbance: str | None = None
    energy_j: float | None = None


@dataclass(frozen=True, kw_only=True)
class DeviceState:
    """The visible GPUs right after runs, so far; `None` on a CPU and where NVML cannot tell.

    Attributes:
        clock_mhz: median over the runs of the slowest GPU's SM clock.
        temperature_c: the highest of any GPU.
        power_w: median over the runs of all GPUs together. NVML averages over the last second on most cards.
    """

    clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


class TrialWatch:
    """Watches the runs of one trial. Make it before the trial's process initialises its device, and use it there.

    Attributes:
        own: what is not foreign; tell it of the engine's processes.
    """

    def __init__(self, device: DeviceType) -> None:
        is_cuda = device is DeviceType.CUDA
        self._gpus = gpu.visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")) if is_cuda else ()
        self._watches_cpu_clock = not is_cuda
        self._wanted_cpus = min(CPUS_BESIDE_A_GPU, cpu.wanted_cpus()) if is_cuda else cpu.wanted_cpus()
        self._quotas = cgroups.quota_folders()
        self.own = OwnProcesses()
        self._others = OtherLoad(self.own.cpu_s)
        self._were_there = self._processes()
        self._highest_mhz: dict[str, float] = {}
        self._clocks_mhz: list[float] = []
        self._temperatures_c: list[float] = []
        self._powers_w: list[float] = []

    def start_run(self) -> RunWatch:
        """Call it right before a run."""
        return RunWatch(self)

    @property
    def device_state(self) -> DeviceState:
        """What was seen after the runs so far."""
        return DeviceState(
            clock_mhz=statistics.median(self._clocks_mhz) if self._clocks_mhz else None,
            temperature_c=max(self._temperatures_c, default=None),
            power_w=statistics.median(self._powers_w) if self._powers_w else None,
        )

    def energy_mj(self) -> int | None:
        """The counters of all visible GPUs together; `None` if there are none or one has no counter."""
        counters = [gpu.energy_mj(one) for one in self._gpus]
        known = [counter for counter in counters if counter is not None]
        return sum(known) if known and len(known) == len(counters) else None

    def throttling(self) -> frozenset[str]:
        """What holds the clocks down from outside. A power cap does not count: a heavy run meets it by itself."""
        return frozenset(reason for one in self._gpus for reason in _throttle_reasons(gpu.clock_events(one)))

    def foreign_processes(self) -> frozenset[str]:
        """One sentence for each process that computes on a visible GPU and is not ours (see the module)."""
        listed = self._processes()
        new = listed - self._were_there
        if listed == new and len(new) <= 1:
            return frozenset()
        tree = set(self.own.pids())
        if tree & new:
            return frozenset(_on_the_gpu(pid) for pid in listed - tree)
        unknown = {"another process computes on the same GPU"} if len(new) > len(tree) else set()
        return frozenset(unknown | {_on_the_gpu(pid) for pid in listed - new})

    def start_cpus(self) -> OwnThreads:
        """Begin to watch who has the CPUs."""
        self._others.mark()
        return OwnThreads(self._quotas, tasks=self.own.task_folders)

    def taken_cpus(self, own: OwnThreads) -> list[str]:
        """A sentence for each way in which the process lacked a CPU since `start_cpus`."""
        waited = own.waited() or Waited(for_others=0.0, for_quota=0.0)
        reasons = [self.other_programs(self._others.cpus())]
        if reasons[0] is None and waited.for_others > DISTURBING_WAIT:
            reasons.append(f"other programs kept a thread from a CPU for {waited.for_others * 100:.0f} % of the run")
        if waited.for_quota > DISTURBING_WAIT:
            reasons.append(f"the CPU quota stopped a thread for {waited.for_quota * 100:.0f} % of the run")
        return [reason for reason in reasons if reason]

    def other_programs(self, used_cpus: float | None) -> str | None:
        """The reason, if other programs that kept `used_cpus` CPUs busy took from those that the process wants.

        On a machine with more CPUs than that, others use the spare ones first.
        """
        total = max(cpu.machine_cpus(), self._wanted_cpus)
        if used_cpus is None or used_cpus - (total - self._wanted_cpus) <= DISTURBING_SHARE * self._wanted_cpus:
            return None
        return f"other programs used {used_cpus:.1f} of {total} CPUs"

    def fallen_clocks(self) -> list[str]:
        """Read the clocks under load; a sentence for each that fell against the highest seen after a run."""
        return [*self._fallen_gpu_clocks(), *self._fallen_cpu_clock()]

    def note_device_state(self) -> None:
        """Read temperature and power."""
        for one in self._gpus:
            self._temperatures_c += _known(gpu.temperature_c(one))
        powers = [watts for one in self._gpus for watts in _known(gpu.power_w(one))]
        if powers and len(powers) == len(self._gpus):
            self._powers_w.append(sum(powers))

    def _fallen_gpu_clocks(self) -> Iterator[str]:
        under_load: list[float] = []
        for one in self._gpus:
            mhz, events = gpu.sm_clock_mhz(one), gpu.clock_events(one) or ClockEvent(0)
            if mhz is None or ClockEvent.IDLE in events:  # it has dropped already because the run is over
                continue
            under_load.append(mhz)
            highest = self._highest(one, mhz)
            if mhz < (1 - GPU_CLOCK_FALL) * highest and ClockEvent.POWER_CAP not in events:
                yield f"SM clock fell from {highest:.0f} to {mhz:.0f} MHz"
        if under_load:
            self._clocks_mhz.append(min(under_load))

    def _fallen_cpu_clock(self) -> Iterator[str]:
        mhz = cpu.clock_mhz() if self._watches_cpu_clock else None
        if mhz is None:
            return
        highest = self._highest(None, mhz)
        if mhz < (1 - CPU_CLOCK_FALL) * highest:
            yield f"CPU clock fell from {highest:.0f} to {mhz:.0f} MHz"

    def _highest(self, of: GpuInfo | None, mhz: float) -> float:
        key = of.uuid if of else "cpu"
        self._highest_mhz[key] = max(mhz, self._highest_mhz.get(key, mhz))
        return self._highest_mhz[key]

    def _processes(self) -> frozenset[int]:
        return frozenset(pid for one in self._gpus for pid in gpu.other_processes(one, ()))


class RunWatch:
    """Watches one run, from its making until `finish`."""

    def __init__(self, trial: TrialWatch) -> None:
        self._trial = trial
        self._reasons = trial.throttling() | trial.foreign_processes()
        self._energy_mj = trial.energy_mj()
        self._own_threads = trial.start_cpus()

    def finish(self) -> Conditions:
        """Call it once, right after the run."""
        trial = self._trial
        taken = trial.taken_cpus(self._own_threads)
        energy_j = self._energy_j(trial.energy_mj())
        fallen = trial.fallen_clocks()
        after = trial.throttling() | trial.foreign_processes()
        trial.note_device_state()
        reasons = [*taken, *sorted(self._reasons | after), *fallen]
        return Conditions(disturbance="; ".join(reasons) or None, energy_j=energy_j)

    def _energy_j(self, now_mj: int | None) -> float | None:
        """`None` also where the counter, which the driver moves ten to fifty times a second, has not moved."""
        if now_mj is None or self._energy_mj is None or now_mj <= self._energy_mj:
            return None
        return (now_mj - self._energy_mj) / 1e3


def _throttle_reasons(events: ClockEvent | None) -> Iterator[str]:
    if events is None:
        return
    thermal, brake = ClockEvent.SW_THERMAL | ClockEvent.HW_THERMAL, ClockEvent.POWER_BRAKE
    if events & thermal:
        yield "thermal throttling"
    if events & brake:
        yield "power-brake throttling"
    if ClockEvent.HW_SLOWDOWN in events and not events & (ClockEvent.HW_THERMAL | brake):
        yield "hardware slowdown"


def _on_the_gpu(pid: int) -> str:
    return f"process {pid} computes on the same GPU"


def _known(value: float | None) -> list[float]:
    return [] if value is None else [value]
