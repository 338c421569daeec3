"""What a measurement was made on: device, driver, versions. Read without importing any of the libraries."""

from __future__ import annotations

import platform
import socket
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from kvray.candidate import DeviceType
from kvray.probes.cpu import available_cpus, cpu_name
from kvray.probes.gpu import list_gpus


@dataclass(frozen=True, kw_only=True)
class Environment:
    """`None`: not installed, or not applicable to the device."""

    device_name: str
    driver_version: str | None
    torch_version: str | None
    transformers_version: str | None
    kvray_version: str
    python_version: str
    host: str
    cpus: int


def capture_environment(device: DeviceType) -> Environment:
    """The environment of this process when it computes on `device` (the first visible GPU for CUDA)."""
    gpu = next(iter(list_gpus()), None) if device is DeviceType.CUDA else None
    return Environment(
        device_name=gpu.name if gpu else cpu_name(),
        driver_version=gpu.driver_version if gpu else None,
        torch_version=_version("torch"),
        transformers_version=_version("transformers"),
        kvray_version=kvray_version(),
        python_version=platform.python_version(),
        host=socket.gethostname(),
        cpus=available_cpus(),
    )


def kvray_version() -> str:
    """The version of the installed kvray; `unknown` when it runs from a source tree that was never installed."""
    return _version("kvray") or "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
