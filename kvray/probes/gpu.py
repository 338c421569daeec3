"""NVIDIA GPUs through NVML, which sees them without creating a CUDA context. Everything is empty without a driver.

Never call it in a process that forks measurement processes afterwards: each caller initialises NVML for itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml

T = TypeVar("T")
_MIB = 1024 * 1024
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class GpuInfo:
    """One GPU that this process may use."""

    index: int
    uuid: str
    name: str
    memory_total_mib: float
    compute_capability: tuple[int, int]
    driver_version: str


def list_gpus() -> tuple[GpuInfo, ...]:
    """The GPUs that `CUDA_VISIBLE_DEVICES` leaves to this process (all where it is unset); empty without a driver."""
    with _nvml() as usable:
        return tuple(_info(index) for index in _visible_indices()) if usable else ()


def used_memory_mib(gpu: GpuInfo) -> float:
    """Memory in use on `gpu`, by whichever process."""
    with _nvml():
        return float(pynvml.nvmlDeviceGetMemoryInfo(_handle(gpu.index)).used) / _MIB


def process_memory_mib(pid: int) -> float | None:
    """Device memory that `pid` holds on all visible GPUs; `None` without a driver, or where NVML cannot tell."""
    with _nvml() as usable:
        if not usable:
            return None
        held = [_process_memory(_handle(index), pid) for index in _visible_indices()]
        known = [memory for memory in held if memory is not None]
        return sum(known) / _MIB if known else None


def wait_until_released(pid: int, *, timeout_s: float = 20.0) -> bool:
    """Wait until process `pid`, which has ended, holds no device memory any more; whether it came to that."""
    deadline = time.monotonic() + timeout_s
    while process_memory_mib(pid) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


@contextmanager
def _nvml() -> Iterator[bool]:
    """NVML for the length of a `with`; whether there is one."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()


def _visible_indices() -> tuple[int, ...]:
    count = int(pynvml.nvmlDeviceGetCount())
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    if setting is None:
        return tuple(range(count))
    uuids = [_text(pynvml.nvmlDeviceGetUUID(_handle(index))) for index in range(count)]
    return select_devices(setting, uuids)


def select_devices(setting: str, uuids: list[str]) -> tuple[int, ...]:
    """Indices that a value of `CUDA_VISIBLE_DEVICES` selects among GPUs with `uuids`.

    As CUDA does it: entries are indices or beginnings of UUIDs, and the first invalid one ends the list.
    Source: CUDA C++ Programming Guide, "CUDA Environment Variables".
    """
    chosen: list[int] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdigit() and int(entry) < len(uuids):
            chosen.append(int(entry))
            continue
        matching = [index for index, uuid in enumerate(uuids) if entry and uuid.startswith(entry)]
        if len(matching) != 1:
            break
        chosen.extend(matching)
    return tuple(chosen)


def _info(index: int) -> GpuInfo:
    handle = _handle(index)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return GpuInfo(
        index=index,
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        memory_total_mib=float(pynvml.nvmlDeviceGetMemoryInfo(handle).total) / _MIB,
        compute_capability=(int(major), int(minor)),
        driver_version=_text(pynvml.nvmlSystemGetDriverVersion()),
    )


def _process_memory(handle: Any, pid: int) -> int | None:
    processes = _supported(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    return next((process.usedGpuMemory for process in processes if process.pid == pid), None)


def _supported(query: Callable[[], T]) -> T | None:
    """The answer, or `None` where this GPU or driver does not offer the query."""
    try:
        return query()
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_NoPermission):
        return None


def _handle(index: int) -> Any:
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
