"""GPUs by NVML: what is there, who holds memory on it, what energy it used. Without a driver: nothing, and no error.

NVML is initialised on the first question a process asks and never in a fork server: what a parent initialised is of
no use to a forked child, which asks anew (the cache is keyed by the process id).

NVML ignores `CUDA_VISIBLE_DEVICES` and counts GPUs in PCI order, as CUDA does under `CUDA_DEVICE_ORDER=PCI_BUS_ID`. It
knows processes by the ids of the host's namespace: in a container with its own, own processes may not be found.
"""

from __future__ import annotations

import atexit
import enum
import functools
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger("kvray.probes")

MIB = 2**20
_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class GpuInfo:
    """One GPU of this machine.

    Attributes:
        index: NVML's, in PCI order.
        uuid: `GPU-…`, the same on every boot.
        compute_capability: (major, minor).
    """

    index: int
    uuid: str
    name: str
    memory_total_mib: float
    compute_capability: tuple[int, int]
    driver_version: str


class ClockEvent(enum.Flag):
    """Why a GPU's clocks are what they are, by NVML's bits; those that are not named here are left out."""

    IDLE = 0x1
    POWER_CAP = 0x4
    HW_SLOWDOWN = 0x8
    """Set along with its cause: heat, an external power brake, or too fast a rise of the power drawn."""
    SW_THERMAL = 0x20
    HW_THERMAL = 0x40
    POWER_BRAKE = 0x80


_KNOWN_CLOCK_EVENTS = (~ClockEvent(0)).value


def list_gpus() -> tuple[GpuInfo, ...]:
    """All GPUs of this machine, whatever `CUDA_VISIBLE_DEVICES` says; empty where there is no driver."""
    nvml = _nvml()
    if nvml is None:
        return ()
    count = _ask(nvml, nvml.nvmlDeviceGetCount) or 0
    described = (_ask(nvml, _describe, nvml, index) for index in range(count))
    return tuple(gpu for gpu in described if gpu is not None)


def visible_gpus(cuda_visible_devices: str | None) -> tuple[GpuInfo, ...]:
    """The GPUs that a process with that value of `CUDA_VISIBLE_DEVICES` can use, in CUDA's order; `None`: all."""
    return select_visible(list_gpus(), cuda_visible_devices)


def select_visible(gpus: Sequence[GpuInfo], cuda_visible_devices: str | None) -> tuple[GpuInfo, ...]:
    """The GPUs that `cuda_visible_devices` names by index or by (the beginning of a) UUID.

    As in CUDA, an entry that names none ends the list. Parts of a GPU (`MIG-…`) are not known here.
    Source: CUDA C++ Programming Guide, "CUDA Environment Variables".
    """
    if cuda_visible_devices is None:
        return tuple(gpus)
    chosen: list[GpuInfo] = []
    for entry in cuda_visible_devices.split(","):
        gpu = _named(gpus, entry.strip())
        if gpu is None:
            break
        chosen.append(gpu)
    return tuple(chosen)


def used_memory_mib(gpu: GpuInfo) -> float | None:
    """Memory in use on the whole of `gpu`, by anyone; `None` if NVML cannot tell."""
    used = _of_device(gpu, lambda nvml, handle: nvml.nvmlDeviceGetMemoryInfo(handle).used)
    return None if used is None else float(used) / MIB


def process_memory_mib(pids: Collection[int], gpus: Sequence[GpuInfo] | None = None) -> float | None:
    """Memory that the processes `pids` hold on `gpus` together (by default those visible to this process), with their
    CUDA contexts; `None` if NVML lists none of them there or does not know the memory of one."""
    by_gpu = process_memory_by_gpu_mib(pids, gpus)
    return None if by_gpu is None else sum(by_gpu)


def process_memory_by_gpu_mib(pids: Collection[int], gpus: Sequence[GpuInfo] | None = None) -> tuple[float, ...] | None:
    """What `process_memory_mib` adds up: the memory on each of `gpus` on which NVML lists one of the processes."""
    on_gpus = [[one.used_mib for one in _processes(gpu) if one.pid in pids] for gpu in _given_or_visible(gpus)]
    held = [mibs for mibs in on_gpus if mibs]
    known = [[mib for mib in mibs if mib is not None] for mibs in held]
    return tuple(sum(mibs) for mibs in known) if held and known == held else None


def other_processes(gpu: GpuInfo, own_pids: Collection[int]) -> tuple[int, ...]:
    """Ids of the processes that compute on `gpu` and are not among `own_pids`."""
    return tuple(sorted({process.pid for process in _processes(gpu)} - set(own_pids)))


def processes_on(gpu: GpuInfo) -> dict[int, float | None]:
    """The processes that compute on `gpu`, each with the MiB that it holds there, `None` if NVML does not know."""
    return {process.pid: process.used_mib for process in _processes(gpu)}


def utilisation_percent(gpu: GpuInfo) -> int | None:
    """Share of the last moments (up to a second) in which anything ran on `gpu`; `None` if NVML cannot tell."""
    percent = _of_device(gpu, lambda nvml, handle: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    return None if percent is None else int(percent)


def wait_until_released(
    pids: Collection[int], *, gpus: Sequence[GpuInfo] | None = None, timeout_s: float = 10.0
) -> bool:
    """Wait until the processes `pids`, which have ended, are gone from `gpus` (by default those that are visible here).

    The driver takes memory back a moment after a process ends.

    Returns:
        Whether they are gone. `True` at once without a driver.
    """
    watched = _given_or_visible(gpus)
    deadline = time.monotonic() + timeout_s
    while any(process.pid in pids for gpu in watched for process in _processes(gpu)):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def energy_mj(gpu: GpuInfo) -> int | None:
    """Energy in millijoules that `gpu` used since the driver was loaded; `None` before Volta or if NVML cannot tell."""
    energy = _of_device(gpu, lambda nvml, handle: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    return None if energy is None else int(energy)


def clock_events(gpu: GpuInfo) -> ClockEvent | None:
    """What shapes the clocks of `gpu` now; `None` if NVML cannot tell."""
    bits = _of_device(gpu, _clock_event_bits)
    return None if bits is None else ClockEvent(int(bits) & _KNOWN_CLOCK_EVENTS)


def sm_clock_mhz(gpu: GpuInfo) -> float | None:
    """Clock of the streaming multiprocessors of `gpu` now, in MHz."""
    clock = _of_device(gpu, lambda nvml, handle: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
    return None if clock is None else float(clock)


def temperature_c(gpu: GpuInfo) -> float | None:
    """Temperature of the chip in degrees Celsius."""
    celsius = _of_device(gpu, lambda nvml, handle: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    return None if celsius is None else float(celsius)


def power_w(gpu: GpuInfo) -> float | None:
    """Watts that the board of `gpu` draws; on most cards an average over the last second."""
    milliwatts = _of_device(gpu, lambda nvml, handle: nvml.nvmlDeviceGetPowerUsage(handle))
    return None if milliwatts is None else float(milliwatts) / 1e3


@dataclass(frozen=True)
class _Process:
    pid: int
    used_mib: float | None


def _processes(gpu: GpuInfo) -> list[_Process]:
    found = _of_device(gpu, lambda nvml, handle: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    return [_Process(int(p.pid), None if p.usedGpuMemory is None else float(p.usedGpuMemory) / MIB) for p in found]


def _given_or_visible(gpus: Sequence[GpuInfo] | None) -> Sequence[GpuInfo]:
    return visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")) if gpus is None else gpus


def _named(gpus: Sequence[GpuInfo], entry: str) -> GpuInfo | None:
    if entry.isdecimal():
        return next((gpu for gpu in gpus if gpu.index == int(entry)), None)
    return next((gpu for gpu in gpus if entry.startswith("GPU-") and gpu.uuid.startswith(entry)), None)


def _describe(nvml: Any, index: int) -> GpuInfo:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return GpuInfo(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_total_mib=float(nvml.nvmlDeviceGetMemoryInfo(handle).total) / MIB,
        compute_capability=(int(major), int(minor)),
        driver_version=_text(nvml.nvmlSystemGetDriverVersion()),
    )


def _clock_event_bits(nvml: Any, handle: Any) -> Any:
    """Drivers before 535 know the question only by its old name."""
    try:
        return nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except nvml.NVMLError_FunctionNotFound:
        return nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _of_device(gpu: GpuInfo, question: Callable[[Any, Any], Any]) -> Any:
    """The answer for the device of that UUID, `None` if NVML has none."""
    nvml = _nvml()
    if nvml is None:
        return None
    return _ask(nvml, lambda: question(nvml, nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)))


def _ask(nvml: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or `None`: a question that a card or driver does not support must not end a measurement."""
    try:
        return question(*arguments)
    except nvml.NVMLError as error:
        logger.debug("NVML: %s", error)
        return None


def _nvml() -> Any:
    """The module `pynvml`, initialised in this process, or `None` without a driver."""
    return _initialised(os.getpid())


@functools.cache
def _initialised(pid: int) -> Any:
    import pynvml

    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return None
    except pynvml.NVMLError as error:
        logger.warning("NVML cannot be used: %s", error)
        return None
    atexit.register(_shut_down, pynvml, pid)
    return pynvml


def _shut_down(nvml: Any, pid: int) -> None:
    """A forked child inherits this exit handler, but not the initialisation that it would undo."""
    if os.getpid() == pid:
        _ask(nvml, nvml.nvmlShutdown)
