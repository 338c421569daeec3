"""`Hardware`: how fast this device copies and multiplies, measured once by an engine and kept in kvray's cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from kvray.candidate import DeviceType, DType
from kvray.config import cache_dir
from kvray.files.file_systems import write_whole
from kvray.probes.cpu import available_memory_mib
from kvray.probes.environment import capture_environment
from kvray.probes.gpu import used_memory_mib, visible_gpus

FORMAT_VERSION = 1
AGAIN_AFTER_S = 6 * 3600.0
"""Until rates that were disturbed are measured again: a busy machine is still busy a minute later."""
Rate = Annotated[float, Field(gt=1e-9, lt=1e30)]
NotNegative = Annotated[float, Field(ge=0, lt=1e15)]


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device under one version of torch with so many threads. Rates are per second.

    Attributes:
        copy_bytes_s: bytes read plus bytes written by a copy from device memory to device memory.
        matmul_flops_s: of large square matrices, by dtype; a multiplication and an addition are two.
        stream_bytes_s: bytes of a matrix read while it is multiplied with one row, as decoding does, by dtype.
        layer_s: seconds that a decoder layer takes for one token when its weights are next to nothing: Python,
            dispatch, launches.
        step_s: the same for all of a generated token that is not in a layer.
        to_device_bytes_s: of a copy from host memory; `None` on a CPU.
        resident_mib: what a process holds before it has a model: resident set with libraries (CPU), or device memory
            outside the allocator (CUDA).
        disturbance: what took from the device meanwhile, for people; such rates are measured again after some hours.
        measured_at: Unix time, seconds; `None` in files of older versions.
    """

    device: DeviceType
    copy_bytes_s: Rate
    matmul_flops_s: Mapping[DType, Rate]
    stream_bytes_s: Mapping[DType, Rate]
    layer_s: NotNegative
    step_s: NotNegative
    to_device_bytes_s: Rate | None = None
    resident_mib: NotNegative = 0.0
    disturbance: str | None = None
    measured_at: float | None = None

    def again_in_s(self, now: float) -> float:
        """Seconds after `now` (Unix time) until it should be measured again; infinity for what was not disturbed."""
        if not self.disturbance:
            return math.inf
        age_s = math.inf if self.measured_at is None else now - self.measured_at
        return AGAIN_AFTER_S - age_s if 0 <= age_s < AGAIN_AFTER_S else 0.0

    def best_with(self, later: Hardware) -> Hardware:
        """What is known after `later` was measured too: of each rate the faster, for what else runs only slows. What
        was not disturbed stands alone."""
        if not later.disturbance:
            return later
        return replace(
            later,
            copy_bytes_s=max(self.copy_bytes_s, later.copy_bytes_s),
            matmul_flops_s=_faster(self.matmul_flops_s, later.matmul_flops_s),
            stream_bytes_s=_faster(self.stream_bytes_s, later.stream_bytes_s),
            layer_s=min(self.layer_s, later.layer_s),
            step_s=min(self.step_s, later.step_s),
            to_device_bytes_s=max(filter(None, (self.to_device_bytes_s, later.to_device_bytes_s)), default=None),
        )

    def to_json(self) -> str:
        """One object; the inverse of `from_json`."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Hardware:
        """Rebuild from `to_json`.

        Raises:
            ValueError: it is something else, or a rate is not a positive number.
        """
        hardware: Hardware = TypeAdapter(cls).validate_json(text)
        return hardware


def _faster(known: Mapping[DType, float], later: Mapping[DType, float]) -> dict[DType, float]:
    return {dtype: max(rate, known.get(dtype, 0.0)) for dtype, rate in later.items()}


@dataclass(frozen=True, kw_only=True)
class HardwareKey:
    """What measured rates depend on.

    Attributes:
        threads: that the engine computes with; `None`: its library's own choice among `cpus`. 0 on a GPU.
    """

    engine: str
    device: DeviceType
    device_name: str
    driver_version: str | None
    engine_versions: tuple[tuple[str, str], ...]
    cpus: int
    threads: int | None

    @classmethod
    def here(
        cls, engine: str, device: DeviceType, threads: int | None, *, libraries: Iterable[str] = ()
    ) -> HardwareKey:
        """The key of this machine's first device of that kind.

        Args:
            libraries: `EngineAdapter.libraries`.
        """
        environment = capture_environment(device, libraries=libraries)
        on_gpu = device is DeviceType.CUDA
        return cls(
            engine=engine,
            device=device,
            device_name=environment.device_name,
            driver_version=environment.driver_version,
            engine_versions=tuple(environment.engine_versions.items()),
            cpus=0 if on_gpu else environment.cpus,
            threads=0 if on_gpu else threads,
        )

    @property
    def path(self) -> Path:
        """Where the rates are kept."""
        digest = hashlib.sha256(repr((FORMAT_VERSION, asdict(self))).encode()).hexdigest()
        return cache_dir() / "hardware" / f"{digest[:16]}.json"


def load_hardware(key: HardwareKey) -> Hardware | None:
    """What was measured for `key`; `None` if nothing was, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return Hardware.from_json(key.path.read_text(encoding="utf-8"))
    return None


def save_hardware(key: HardwareKey, hardware: Hardware) -> None:
    """Keep `hardware` for `key`. A cache that cannot be written costs a measurement next time, and no more."""
    with contextlib.suppress(OSError):
        key.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(key.path, f"{hardware.to_json()}\n".encode())


def free_memory_mib(device: DeviceType) -> float | None:
    """Memory that a new process could take on this machine's `device` now: of several GPUs the fullest counts, for any
    may be given the trial. `None` where nothing tells."""
    if device is DeviceType.CPU:
        return available_memory_mib()
    gpus = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    used = [(gpu, used_memory_mib(gpu)) for gpu in gpus]
    return min((gpu.memory_total_mib - mib for gpu, mib in used if mib is not None), default=None)
