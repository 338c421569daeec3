"""The `llama-server` command line that serves what was measured, from the same `ContextSettings`."""

from __future__ import annotations

from collections.abc import Sequence

from kvray.candidate import Candidate, DeviceType
from kvray.engines.llama_cpp.settings import ALL_LAYERS, ContextSettings, largest_settings
from kvray.workload import Cell

SERVER = "llama-server"


def command(model: str, candidate: Candidate, device: DeviceType, cells: Sequence[Cell]) -> tuple[str, ...]:
    """The words of the command line. What the server would choose by itself is written out: slots, memory fitting,
    flash attention, threads, devices. Its prompt cache stays on: it only saves what a repeated prompt costs.

    Args:
        model: path of the GGUF file.
        cells: the server holds each of them.
    """
    settings = largest_settings(candidate, cells, device=device)
    return (
        SERVER,
        "--model",
        model,
        *_context_words(settings),
        *_thread_words(settings),
        *_gpu_words(settings, device),
    )


def _context_words(settings: ContextSettings) -> tuple[str, ...]:
    return (
        *("--ctx-size", str(settings.n_ctx), "--parallel", str(settings.n_seq_max)),
        "--kv-unified" if settings.kv_unified else "--no-kv-unified",
        *("--batch-size", str(settings.n_batch), "--ubatch-size", str(settings.n_ubatch)),
        *("--cache-type-k", settings.type_k, "--cache-type-v", settings.type_v),
        *("--flash-attn", "on" if settings.flash_attention else "off"),
        *(("--swa-full",) if settings.swa_full else ()),
        "--repack" if settings.repack else "--no-repack",
        *("--fit", "off"),
    )


def _thread_words(settings: ContextSettings) -> tuple[str, ...]:
    return (
        *("--threads", str(settings.threads), "--threads-batch", str(settings.threads_batch)),
        *("--poll", str(settings.poll)),
    )


def _gpu_words(settings: ContextSettings, device: DeviceType) -> tuple[str, ...]:
    """On a CPU `--device none` keeps a server that was built for a GPU from using one."""
    if device is DeviceType.CPU:
        return ("--device", "none")
    layers = "all" if settings.n_gpu_layers == ALL_LAYERS else str(settings.n_gpu_layers)
    return (
        *("--gpu-layers", layers, "--split-mode", settings.split_mode.value),
        "--kv-offload" if settings.offload_kqv else "--no-kv-offload",
        *(("--n-cpu-moe", str(settings.n_cpu_moe)) if settings.n_cpu_moe else ()),
    )
