"""The anchor: a fixed computation by which a slow machine is told from a slow configuration.

On a CPU it copies memory and multiplies matrices with NumPy's own loops (`einsum` without BLAS), in as many threads as
a trial computes with. No library under test takes part; it rests on NumPy's version alone. On a GPU only an engine's
library reaches the device, so there it rests on that library's version. An anchor of other versions is another one.

`python -m kvray.check.watch.anchor THREADS` measures the CPU's and prints it as JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from kvray.candidate import DeviceType, DType
from kvray.engines.base import EngineAdapter
from kvray.forecast.hardware import Hardware
from kvray.probes.cpu import available_cpus
from kvray.search_paths import child_environment, python_command

TIMEOUT_S = 120.0
_STRETCHES = 5
_STRETCH_S = 0.06
_MIB = 2**20
_COPIED_BYTES = 64 * _MIB
_MOST_COPIED = 1024 * _MIB
_ROWS, _DEPTH = 64, 1024
"""Two matrices of 256 KiB, which a core's own cache holds."""
_GPU_DTYPE = DType.FLOAT16


@dataclass(frozen=True, kw_only=True)
class AnchorRates:
    """What one process measured.

    Attributes:
        anchor: which computation it was, with all that it rests on. Only rates of the same one can be compared.
        copy_gb_s: gigabytes per second, read and written.
        matmul_gflop_s: a multiplication and an addition are two.
    """

    anchor: str
    copy_gb_s: float
    matmul_gflop_s: float


def measure_anchor(device: DeviceType, adapter: EngineAdapter, threads: int | None) -> AnchorRates | None:
    """The rates of `device` now, measured in a fresh process; `None` where they cannot be measured.

    Args:
        adapter: the engine that is watched.
        threads: with which a trial computes on a CPU; `None`: on all CPUs that this process may use.
    """
    if device is DeviceType.CPU:
        return _apart(threads or available_cpus())
    return _of_gpu(adapter)


def _apart(threads: int) -> AnchorRates | None:
    command = python_command("-m", __name__, str(threads))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S, env=child_environment()
        )
        return AnchorRates(**json.loads(done.stdout))
    except (subprocess.SubprocessError, OSError, ValueError, TypeError):
        return None


def _of_gpu(adapter: EngineAdapter) -> AnchorRates | None:
    hardware = adapter.measure_hardware(DeviceType.CUDA, None) if adapter.measures_hardware else None
    return None if hardware is None else _rates_of(hardware, adapter)


def _rates_of(hardware: Hardware, adapter: EngineAdapter) -> AnchorRates | None:
    from kvray.probes.environment import library_versions

    flops = hardware.matmul_flops_s.get(_GPU_DTYPE) or next(iter(hardware.matmul_flops_s.values()), None)
    if flops is None:
        return None
    versions = ", ".join(f"{name} {version}" for name, version in sorted(library_versions(adapter.libraries).items()))
    return AnchorRates(
        anchor=f"GPU by {versions or adapter.name}",
        copy_gb_s=hardware.copy_bytes_s / 1e9,
        matmul_gflop_s=flops / 1e9,
    )


def measure_cpu(threads: int) -> AnchorRates:
    """The rates of all `threads` together, in this process."""
    each = min(_COPIED_BYTES, _MOST_COPIED // threads)
    copied = _rate(threads, lambda: _copier(each), 2 * each)
    flops = _rate(threads, _multiplier, 2 * _ROWS * _ROWS * _DEPTH)
    name = f"CPU, {threads} thread{'' if threads == 1 else 's'}, NumPy {np.__version__}"
    return AnchorRates(anchor=name, copy_gb_s=copied / 1e9, matmul_gflop_s=flops / 1e9)


def _copier(size: int) -> Callable[[], object]:
    source = np.zeros(size, dtype=np.uint8)
    target = np.ones_like(source)
    return lambda: np.copyto(target, source)


def _multiplier() -> Callable[[], object]:
    left = np.ones((_ROWS, _DEPTH), dtype=np.float32)
    right = np.ones_like(left)
    result = np.zeros((_ROWS, _ROWS), dtype=np.float32)
    return lambda: np.einsum("ik,jk->ij", left, right, out=result, optimize=False)


def _rate(threads: int, make: Callable[[], Callable[[], object]], work: int) -> float:
    """`work` per second of all threads together: the median of several stretches of time."""
    ready = threading.Barrier(threads)
    found = [[0.0] * _STRETCHES for _ in range(threads)]

    def compute(number: int) -> None:
        once = make()
        once()
        for stretch in range(_STRETCHES):
            ready.wait()
            started, calls = time.perf_counter(), 0
            while (spent := time.perf_counter() - started) < _STRETCH_S:
                once()
                calls += 1
            found[number][stretch] = calls * work / spent

    running = [threading.Thread(target=compute, args=(number,)) for number in range(threads)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    return statistics.median(map(sum, zip(*found, strict=True)))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.stdout.write(json.dumps(asdict(measure_cpu(int(sys.argv[1])))))
