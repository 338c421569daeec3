"""How fast a device copies, multiplies and gets through a layer: a few seconds, in a process of its own.

`python -m kvray.engines.transformers.device_rates cpu` prints a `Hardware` as JSON.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kvray.candidate import DeviceType, DType
from kvray.forecast.hardware import Hardware
from kvray.probes.cpu import PeakRss
from kvray.probes.disturbance import TrialWatch
from kvray.probes.gpu import process_memory_mib
from kvray.search_paths import child_environment, python_command

TIMEOUT_S = 120.0
_MIB = 2**20
_SHARE_S = 0.15
"""Seconds for each rate, in which it is measured several times over."""
_LEAST_CALLS = 3
_COPIED_BYTES = {DeviceType.CPU: 256 * _MIB, DeviceType.CUDA: 1024 * _MIB}
_STREAMED_BYTES = {DeviceType.CPU: 256 * _MIB, DeviceType.CUDA: 1024 * _MIB}
"""Far beyond any cache, as a model's weights are."""
_STREAMED_WIDTH = 4096
_SQUARE = {DeviceType.CPU: 1024, DeviceType.CUDA: 8192}
_LAYERS = (2, 10)
_DECODED = 12


def measure_apart(device: DeviceType, threads: int | None, environment: Mapping[str, str]) -> Hardware | None:
    """The rates, measured by a process with the threads of a trial; `None` if it fails or takes too long."""
    own = {**environment, **child_environment()}
    if threads is not None:
        own["OMP_NUM_THREADS"] = str(threads)
    command = python_command("-m", __name__, device.value)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S, env=own)
        return Hardware.from_json(done.stdout)
    except (subprocess.SubprocessError, OSError, ValueError, LookupError, TypeError):
        return None


def measure(kind: DeviceType) -> Hardware:
    """The rates of this process's first device of that kind."""
    watch = TrialWatch(kind)
    import torch

    device = torch.device(kind.value)
    torch.zeros(1, device=device)
    run = watch.start_run()
    resident_mib = _resident_mib(kind)
    layer_s, step_s = _own_times(device)
    rates = Hardware(
        device=kind,
        copy_bytes_s=_copy_rate(device, kind),
        matmul_flops_s={dtype: _matmul_rate(device, kind, dtype) for dtype in DType},
        stream_bytes_s={dtype: _stream_rate(device, kind, dtype) for dtype in DType},
        layer_s=layer_s,
        step_s=step_s,
        to_device_bytes_s=_to_device_rate(device) if kind is DeviceType.CUDA else None,
        resident_mib=resident_mib,
    )
    return replace(rates, disturbance=run.finish().disturbance)


def _resident_mib(kind: DeviceType) -> float:
    """With the library imported and the device initialised, as in a trial's process before it loads a model."""
    import transformers.generation.utils
    import transformers.models.llama.modeling_llama  # noqa: F401

    if kind is DeviceType.CUDA:
        import torch

        held = process_memory_mib([os.getpid()]) or 0.0
        return max(0.0, held - torch.cuda.memory_reserved() / _MIB)
    rss = PeakRss()
    rss.reset()
    return rss.read_mib()


def _copy_rate(device: Any, kind: DeviceType) -> float:
    import torch

    source = torch.zeros(_COPIED_BYTES[kind], dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * source.numel() / _seconds(lambda: target.copy_(source), device)


def _to_device_rate(device: Any) -> float:
    """From pageable memory, as an offloaded cache lies in."""
    import torch

    source = torch.zeros(256 * _MIB, dtype=torch.uint8)
    target = torch.ones(source.numel(), dtype=torch.uint8, device=device)
    return source.numel() / _seconds(lambda: target.copy_(source), device)


def _matmul_rate(device: Any, kind: DeviceType, dtype: DType) -> float:
    import torch

    size = _SQUARE[kind]
    left = torch.ones(size, size, dtype=getattr(torch, dtype.value), device=device)
    right = torch.ones_like(left)
    return 2 * size**3 / _seconds(lambda: torch.nn.functional.linear(left, right), device)


def _stream_rate(device: Any, kind: DeviceType, dtype: DType) -> float:
    """One row times a matrix that no cache holds."""
    import torch

    torch_dtype = getattr(torch, dtype.value)
    rows = _STREAMED_BYTES[kind] // (_STREAMED_WIDTH * torch_dtype.itemsize)
    matrix = torch.ones(rows, _STREAMED_WIDTH, dtype=torch_dtype, device=device)
    row = torch.ones(1, _STREAMED_WIDTH, dtype=torch_dtype, device=device)
    return matrix.numel() * matrix.element_size() / _seconds(lambda: torch.nn.functional.linear(row, matrix), device)


def _own_times(device: Any) -> tuple[float, float]:
    """Seconds per layer and per token of a model that is all overhead: two depths tell them apart."""
    few, many = _LAYERS
    few_s, many_s = _token_s(device, few), _token_s(device, many)
    layer_s = max(0.0, (many_s - few_s) / (many - few))
    return layer_s, max(0.0, few_s - few * layer_s)


def _token_s(device: Any, layers: int) -> float:
    """Seconds per token of `generate` with a tiny Llama, by the tokens after the first."""
    import torch
    from transformers import DynamicCache, GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=1
    )
    with device:
        model = LlamaForCausalLM(config).eval()
    prompt = torch.ones(1, 8, dtype=torch.long, device=device)

    def generate(tokens: int) -> None:
        settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            past_key_values=DynamicCache(config=config),
            generation_config=settings,
        )

    one_s = _seconds(lambda: generate(1), device)
    return (_seconds(lambda: generate(1 + _DECODED), device) - one_s) / _DECODED


def _seconds(work: Callable[[], object], device: Any) -> float:
    """Seconds of one call: the fastest of several after a warm-up, because whatever else runs here only adds."""
    import torch

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    work()
    finish()
    spent: list[float] = []
    while len(spent) < _LEAST_CALLS or sum(spent) < _SHARE_S:
        started = time.perf_counter()
        work()
        finish()
        spent.append(time.perf_counter() - started)
    return min(spent)


if __name__ == "__main__":
    sys.stdout.write(measure(DeviceType(sys.argv[1])).to_json())
