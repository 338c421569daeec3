"""How fast a device copies and multiplies in vLLM's Python, and what vLLM's processes take before they hold a model.

`python -m kvray.engines.vllm.device_rates cpu` prints a `Hardware` as JSON. No engine is started, which would take half
a minute: what vLLM needs for a step beside its kernels is set here instead.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from kvray.candidate import DeviceType, DType
from kvray.engines.hugging_face.torch_rates import copy_rate, matmul_rate, stream_rate, to_device_rate
from kvray.engines.rates_process import print_rates, rates_from
from kvray.forecast.hardware import Hardware
from kvray.probes.cpu import PeakRss
from kvray.probes.disturbance import TrialWatch
from kvray.probes.gpu import process_memory_mib
from kvray.search_paths import child_environment, python_command

TIMEOUT_S = 240.0
LAYER_S = {DeviceType.CPU: 5e-5, DeviceType.CUDA: 1e-4}
"""Seconds for which Python and dispatch keep a layer waiting where nothing is compiled: about ten calls."""
STEP_S = 2e-3
"""Seconds of a step that no kernel takes: the scheduler, the choice of the token, a message there and one back."""
_PROCESSES = 3
"""Ours, the engine's core and one worker: each has the libraries."""
_MIB = 2**20


def measure_apart(device: DeviceType, threads: int | None, environment: Mapping[str, str]) -> Hardware | None:
    """The rates, measured by a process with the threads of a trial; `None` if it fails or takes too long."""
    own = {**environment, **child_environment()}
    if threads is not None:
        own["OMP_NUM_THREADS"] = str(threads)
    command = python_command("-m", __name__, device.value)
    return rates_from(command, environment=own, timeout_s=TIMEOUT_S)


def measure(kind: DeviceType) -> Hardware:
    """The rates of this process's first device of that kind."""
    watch = TrialWatch(kind)
    import torch

    device = torch.device(kind.value)
    torch.zeros(1, device=device)
    resident_mib = _resident_mib(kind)
    run = watch.start_run()
    return Hardware(
        device=kind,
        copy_bytes_s=copy_rate(device, kind),
        matmul_flops_s={dtype: matmul_rate(device, kind, dtype) for dtype in DType},
        stream_bytes_s={dtype: stream_rate(device, kind, dtype) for dtype in DType},
        to_device_bytes_s=to_device_rate(device) if kind is DeviceType.CUDA else None,
        layer_s=LAYER_S[kind],
        step_s=STEP_S,
        resident_mib=resident_mib,
        disturbance=run.finish().disturbance,
    )


def _resident_mib(kind: DeviceType) -> float:
    """On a CPU of all processes, with what a trial's has imported before it starts an engine; on a GPU outside the
    allocator."""
    if kind is DeviceType.CUDA:
        import torch

        held = process_memory_mib([os.getpid()]) or 0.0
        return max(0.0, held - float(torch.cuda.memory_reserved()) / _MIB)
    import vllm.v1.engine.llm_engine  # noqa: F401

    rss = PeakRss()
    rss.reset()
    return _PROCESSES * rss.read_mib()


if __name__ == "__main__":
    print_rates(measure(DeviceType(sys.argv[1])))
