"""How fast a device copies, multiplies and gets through a layer: a few seconds, in a process of its own.

`python -m kvray.engines.transformers.device_rates cpu` prints a `Hardware` as JSON.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kvray.candidate import DeviceType, DType
from kvray.engines.hugging_face.torch_rates import copy_rate, matmul_rate, seconds, stream_rate, to_device_rate
from kvray.engines.rates_process import print_rates, rates_from
from kvray.forecast.hardware import Hardware
from kvray.probes.cpu import PeakRss
from kvray.probes.disturbance import TrialWatch
from kvray.probes.gpu import process_memory_mib
from kvray.search_paths import child_environment, python_command

TIMEOUT_S = 120.0
_MIB = 2**20
_LAYERS = (2, 10)
_DECODED = 12


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
    run = watch.start_run()
    resident_mib = _resident_mib(kind)
    layer_s, step_s = _own_times(device)
    rates = Hardware(
        device=kind,
        copy_bytes_s=copy_rate(device, kind),
        matmul_flops_s={dtype: matmul_rate(device, kind, dtype) for dtype in DType},
        stream_bytes_s={dtype: stream_rate(device, kind, dtype) for dtype in DType},
        layer_s=layer_s,
        step_s=step_s,
        to_device_bytes_s=to_device_rate(device) if kind is DeviceType.CUDA else None,
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

    one_s = seconds(lambda: generate(1), device)
    return (seconds(lambda: generate(1 + _DECODED), device) - one_s) / _DECODED


if __name__ == "__main__":
    print_rates(measure(DeviceType(sys.argv[1])))
