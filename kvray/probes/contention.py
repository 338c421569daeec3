"""Who else uses this machine when a sweep starts: other sweeps, programs on the GPUs, programs on the CPUs.

Nothing here stands in a sweep's way: what cannot be found out is not said. What happens during a run is watched by
`kvray.probes.disturbance`.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kvray.candidate import DeviceType
from kvray.config import cache_dir
from kvray.probes import cgroups, cpu, gpu
from kvray.probes.cpu_load import OtherLoad
from kvray.probes.disturbance import DISTURBING_SHARE
from kvray.probes.gpu import GpuInfo
from kvray.probes.holds import HeldError, hold, holder_of

BUSY_PERCENT = 10
"""Share of a GPU's time from which on it counts as busy; its own housekeeping stays far below."""
BUSY_SHARE = 0.05
"""Share of a GPU's memory that counts as in use if NVML names no process; the driver alone takes about 1 %."""
SAMPLE_S = 0.4
"""In which the CPUs are watched."""
QUIET_LOOKS = 5
"""In a row, after which a machine that was busy counts as quiet."""
NEWS_S = 60.0
"""Between two lines about waiting."""
_PAUSE_S = 1.0
"""Between two looks while waiting."""
_CONSEQUENCE = ": what is measured now will be disturbed."
_SUFFIX = ".sweep"
_PROBLEMS = (OSError, RuntimeError)  # the latter: no home folder
Look = Callable[[DeviceType], Sequence[str]]
"""Gives a sentence for everything that keeps a device busy."""


class QuietWait:
    """Waits until no other program keeps the device busy, by the measure that calls a run disturbed.

    All waits together take no longer than `most_s`. What happens then is the caller's to decide.

    Args:
        otherwise: what is said to happen then.
        tell: is given one line when a wait begins, every `NEWS_S`, and when it ends.
        look: gives a sentence for everything that keeps the device busy.
    """

    def __init__(
        self,
        device: DeviceType,
        most_s: float,
        *,
        tell: Callable[[str], None],
        otherwise: str = "measuring anyway",
        look: Look | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._device = device
        self._most_s = most_s
        self._spent_s = 0.0
        self._tell = tell
        self._otherwise = otherwise
        self._look = look or disturbers
        self._clock = clock
        self._pause = pause
        self.still_busy: str | None = None
        """Who kept the device busy when the last wait ended without quiet, in one line; `None`: nobody."""

    def wait(self) -> None:
        """Return when the device is quiet, or no time to wait is left. Takes one look where it is quiet already, and
        none where no time was left before."""
        self.still_busy = None
        if self._spent_s >= self._most_s or not (busy := self._look(self._device)):
            return
        started, before_s, told_s, quiet_looks = self._clock(), self._spent_s, -math.inf, 0
        while quiet_looks < QUIET_LOOKS and self._spent_s < self._most_s:
            if busy and self._spent_s - told_s >= NEWS_S:
                told_s = self._spent_s
                self._tell(f"Waiting for quiet, {_minutes(told_s)} of {_minutes(self._most_s)}: {busy_text(busy)}.")
            self._pause(_PAUSE_S)
            busy = self._look(self._device)
            quiet_looks = 0 if busy else quiet_looks + 1
            self._spent_s = before_s + self._clock() - started
        if busy:
            self._tell(f"It did not become quiet within {_minutes(self._most_s)}: {self._otherwise}.")
        else:
            self._tell("It is quiet now: measuring goes on.")
        self.still_busy = busy_text(busy)


def busy_text(sentences: Sequence[str]) -> str | None:
    """Who keeps a device busy, in one line without what that means for a measurement; `None`: nobody."""
    return "; ".join(sentence.removesuffix(_CONSEQUENCE) for sentence in sentences) or None


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d} min"


def disturbers(device: DeviceType) -> tuple[str, ...]:
    """A sentence for all that keeps `device` busy, asked before anything of ours runs. Takes up to `SAMPLE_S`."""
    return busy_gpus() if device is DeviceType.CUDA else busy_cpus()


def quota_notes() -> tuple[str, ...]:
    """A sentence where a CPU quota leaves fewer CPUs than this process sees: what it means for trials."""
    quota, threads, chosen = cgroups.cpu_quota(), cpu.quota_threads(), cpu.openmp_threads()
    if quota is None or threads is None:
        return ()
    given = f"The CPU quota of this control group is {quota:g} of the {cpu.visible_cpus()} CPUs that are visible"
    if chosen is not None and chosen > threads:
        stopped = "runs will be stopped by the quota and count as disturbed"
        return (f"{given}, and OMP_NUM_THREADS={chosen} asks for more: {stopped}. Set OMP_NUM_THREADS={threads}.",)
    if quota < 1:
        return (f"{given}, less than one thread needs: every run will be stopped by it and count as disturbed.",)
    if chosen is not None:
        return ()
    counted = "1 thread" if threads == 1 else f"{threads} threads"
    return (
        f"{given}: every trial computes with {counted}, because the quota would stop more. Set OMP_NUM_THREADS="
        f"{threads} where the model is used, too; what you set here is kept.",
    )


def busy_gpus(cuda_visible_devices: str | None = None, *, own_pids: Sequence[int] = ()) -> tuple[str, ...]:
    """A sentence for each visible GPU on which others compute or hold memory; `None`: as this process sees them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if cuda_visible_devices is None else cuda_visible_devices
    own = {os.getpid(), *own_pids}
    told = ((one, _use_of(one, own)) for one in gpu.visible_gpus(visible))
    return tuple(f"GPU {one.index} ({one.name}) is busy: {', '.join(use)}{_CONSEQUENCE}" for one, use in told if use)


def _use_of(one: GpuInfo, own: set[int]) -> list[str]:
    held = gpu.processes_on(one)
    use = [
        f"process {pid} holds {'memory' if mib is None else f'{mib:,.0f} MiB'}"
        for pid, mib in sorted(held.items())
        if pid not in own
    ]
    used_mib = gpu.used_memory_mib(one)
    if not held and used_mib is not None and used_mib > BUSY_SHARE * one.memory_total_mib:
        use.append(f"{used_mib:,.0f} MiB of its memory are in use")
    percent = gpu.utilisation_percent(one)
    if percent is not None and percent > BUSY_PERCENT and not set(held) & own:
        use.append(f"utilisation {percent} %")
    return use


def busy_cpus(sample_s: float = SAMPLE_S) -> tuple[str, ...]:
    """A sentence if other programs keep the CPUs busy."""
    load = OtherLoad()
    time.sleep(sample_s)
    return describe_cpu_load(load.cpus(), cpu.wanted_cpus(), cpu.machine_cpus())


def describe_cpu_load(used: float | None, wanted: int, there: int) -> tuple[str, ...]:
    """The sentence for `used` CPUs that others keep busy, of `there`, where a trial wants `wanted`; none if it hardly
    suffers."""
    if used is None or used - (there - wanted) <= DISTURBING_SHARE * wanted:
        return ()
    return (f"Other programs keep {used:.1f} of {there} CPUs busy{_CONSEQUENCE}",)


@contextlib.contextmanager
def announced_sweep(device: DeviceType, run_id: str) -> Iterator[tuple[str, ...]]:
    """Let other sweeps on this machine know of this one; gives a sentence for each of them that uses `device` too.

    Sweeps of other users, who have another cache folder, are not seen.
    """
    uses = _used(device)
    with contextlib.ExitStack() as stack:
        others: tuple[str, ...] = ()
        with contextlib.suppress(HeldError, *_PROBLEMS):
            folder = cache_dir() / "sweeps"
            host = socket.gethostname()
            about = {"pid": os.getpid(), "host": host, "uses": uses, "run_id": run_id}
            stack.enter_context(hold(folder / f"{host}-{os.getpid()}-{run_id}{_SUFFIX}", about))
            files = [path for path in sorted(folder.glob(f"*{_SUFFIX}")) if path.name.startswith(f"{host}-")]
            found = [one for path in files if (one := holder_of(path)) is not None and one.get("run_id") != run_id]
            others = tuple(_other_sweep(one) for one in found if set(_listed(one.get("uses"))) & set(uses))
        yield others


def _used(device: DeviceType) -> list[str]:
    if device is DeviceType.CPU:
        return ["cpu"]
    return [one.uuid for one in gpu.visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))]


def _listed(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def _other_sweep(holder: Any) -> str:
    return (
        f"Another sweep, {holder.get('run_id')} of process {holder.get('pid')}, runs on the same device: each disturbs "
        "what the other one measures."
    )
