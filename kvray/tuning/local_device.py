"""The device that a sweep on this machine measures on, and how fast it is: detected, and measured when that is due."""

from __future__ import annotations

import logging
import math
import os
import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from kvray.candidate import DeviceType
from kvray.config import TuneConfig
from kvray.engines.base import DeviceFacts, EngineAdapter
from kvray.engines.interpreter import EnginePython
from kvray.engines.rates_elsewhere import rates_in
from kvray.forecast.hardware import Hardware, HardwareKey, save_hardware
from kvray.probes.cpu import cpu_name, trial_threads, wished_threads
from kvray.probes.gpu import visible_gpus

_logger = logging.getLogger("kvray.tuning.local_device")


def detect_device(asked: DeviceType | None, *, slots: int = 1) -> DeviceFacts:
    """What this machine measures on: `asked`, or CUDA where there is a GPU that programs may use, else the CPU.

    Args:
        slots: that share the CPU.
    """
    gpus = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")) if asked is not DeviceType.CPU else ()
    if asked is DeviceType.CPU or (asked is None and not gpus):
        threads = trial_threads(wished_threads(), slots)
        return DeviceFacts(device=DeviceType.CPU, device_name=cpu_name(), trial_threads=threads or 0)
    if not gpus:
        # A cluster may have what the driver's machine lacks; Ray's resources are checked before the first trial.
        return DeviceFacts(device=DeviceType.CUDA, device_name="GPU of the cluster")
    return DeviceFacts(
        device=DeviceType.CUDA,
        device_name=gpus[0].name,
        gpu_count=len(gpus),
        compute_capability=min(gpu.compute_capability for gpu in gpus),
        gpu_memory_mib=min(gpu.memory_total_mib for gpu in gpus),
    )


def rates_key(
    config: TuneConfig, adapter: EngineAdapter, device: DeviceFacts, python: EnginePython | None = None
) -> HardwareKey | None:
    """By what the rates of `device` are known; `None` where forecasts do without.

    Args:
        python: of the engine, where that is not kvray's own.
    """
    is_here = config.address is None and (device.device is DeviceType.CPU or device.gpu_count > 0)
    if not (config.forecast and adapter.measures_hardware and is_here):
        return None
    threads = trial_threads(wished_threads(), config.slots_beside)
    key = HardwareKey.here(adapter.name, device.device, threads, libraries=adapter.libraries)
    return key if python is None else replace(key, engine_versions=tuple(python.engine_versions.items()))


def measured_hardware(
    key: HardwareKey,
    adapter: EngineAdapter,
    known: Hardware | None,
    *,
    python: EnginePython | None = None,
    before_measuring: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.time,
) -> Hardware | None:
    """The rates that are `known`, measured and kept if they never were, or again if that was hours ago while other
    programs ran; `before_measuring` is called then. `None`: the engine cannot measure them.

    Args:
        python: of the engine, where that is not kvray's own: the rates are measured there.
    """
    hardware = known
    if hardware is None or hardware.again_in_s(clock()) <= 0:
        before_measuring()
        measured = (
            adapter.measure_hardware(key.device, key.threads or None)
            if python is None
            else rates_in(python.path, adapter, key.device, key.threads or None)
        )
        if measured is not None:
            measured = replace(measured, measured_at=clock())
            hardware = measured if hardware is None else hardware.best_with(measured)
            save_hardware(key, hardware)
    return hardware


def warn_of_disturbed_rates(
    measured: Iterable[tuple[HardwareKey, Hardware | None]], *, clock: Callable[[], float] = time.time
) -> None:
    """Say once that rates were disturbed while they were measured, whichever engine did it."""
    for key, hardware in measured:
        if hardware is not None and hardware.disturbance:
            _logger.warning("%s", _disturbed_line(key, hardware, clock()))
            return


def _disturbed_line(key: HardwareKey, hardware: Hardware, now: float) -> str:
    """When they are measured again, and how that is done at once."""
    why = f"While this device's rates were measured, {hardware.disturbance}, so forecast times are too long."
    hours = math.ceil(hardware.again_in_s(now) / 3600)
    if hours <= 0:
        return f"{why} The rates are measured again next time."
    file, unit = shlex.quote(str(key.path)), "hour" if hours == 1 else "hours"
    return (
        f"{why} The rates are measured again in {hours} {unit}; to measure them now, delete {file} and repeat the "
        "command."
    )
