"""What a candidate comes to as arguments of vLLM: one source for engine, server and code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kvray.candidate import Candidate, CompileMode, DeviceType
from kvray.engines.base import UnsupportedError
from kvray.engines.vllm.description import cache_groups
from kvray.workload import Cell

OWN_ARGUMENTS = (
    *("kv_cache_dtype", "block_size", "attention_backend", "enable_prefix_caching", "enable_chunked_prefill"),
    *("max_num_batched_tokens", "max_num_seqs", "optimization_level", "kv_offloading_size"),
)
"""Axes that are called as vLLM calls its arguments."""
CUDAGRAPH_MODE = "cudagraph_mode"
THREADS_BIND = "omp_threads_bind"
THREADS_BIND_VARIABLE = "VLLM_CPU_OMP_THREADS_BIND"
DEFAULT_BLOCKS: Mapping[DeviceType, int] = {DeviceType.CPU: 128, DeviceType.CUDA: 16}
"""Tokens of a block where none is asked for."""
SERVER_CHUNK_TOKENS = 2048
"""Worked on at once by default in `vllm serve`, on most devices."""
_POOL_BYTES = 1 << 30
"""So much vLLM is told that it may take for keys and values, lest it takes a share of all memory; how many blocks it
makes is said apart."""


def settings_objection(candidate: Candidate) -> str | None:
    """Why vLLM has no such setting; `None` if it has all of them."""
    known = {*OWN_ARGUMENTS, CUDAGRAPH_MODE, THREADS_BIND}
    unknown = sorted(set(dict(candidate.settings)) - known)
    unknown += ["prefill_chunk"] if candidate.prefill_chunk is not None else []
    unknown += ["weights_limit_mib"] if candidate.weights_limit_mib is not None else []
    if unknown:
        return f"vLLM has no axis {', '.join(unknown)}"
    if candidate.cache_params:
        return f"vLLM's cache has no setting {', '.join(dict(candidate.cache_params))}"
    return None


def engine_arguments(
    model: str, candidate: Candidate, device: DeviceType, cells: Sequence[Cell], *, kinds: tuple[str, ...]
) -> dict[str, Any]:
    """Arguments of `vllm.EngineArgs`, and by these names of `vllm.LLM` and `vllm serve`, for a pool that holds each of
    `cells`. What is not among them is as `vllm serve` has it.

    Args:
        model: a folder or a hub id.
        kinds: `ModelInfo.layer_kinds`.

    Raises:
        UnsupportedError: the candidate has a setting that is not vLLM's.
    """
    if (objection := settings_objection(candidate)) is not None:
        raise UnsupportedError(objection)
    settings = dict(candidate.settings)
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": candidate.dtype.value,
        "max_model_len": longest_tokens(cells) + 1,  # a text as long as the cell is read as a prompt for quality
        "kv_cache_memory_bytes": _POOL_BYTES,
        "num_gpu_blocks_override": pool_blocks(candidate, device, cells, groups=cache_groups(kinds)),
    }
    if candidate.parallelism > 1:
        arguments["tensor_parallel_size"] = candidate.parallelism
    if candidate.compile is CompileMode.OFF:
        arguments["enforce_eager"] = True
    arguments |= {name: settings[name] for name in OWN_ARGUMENTS if name in settings}
    if CUDAGRAPH_MODE in settings:
        arguments["compilation_config"] = {CUDAGRAPH_MODE: settings[CUDAGRAPH_MODE]}
    return arguments


def environment(candidate: Candidate) -> dict[str, str]:
    """Variables that vLLM takes what the candidate asks for from, because it has no argument for it."""
    bind = candidate.setting(THREADS_BIND)
    return {} if bind is None else {THREADS_BIND_VARIABLE: str(bind)}


def longest_tokens(cells: Sequence[Cell]) -> int:
    """Prompt and answer of the longest cell."""
    return max(cell.context_tokens + cell.output_tokens for cell in cells)


def pool_blocks(candidate: Candidate, device: DeviceType, cells: Sequence[Cell], *, groups: int) -> int:
    """Blocks that hold every sequence of the largest cell at once. One more of each sequence is for the token that is
    being written, and vLLM keeps one block to itself.

    Args:
        groups: of layers that take blocks of their own.
    """
    block = block_tokens(candidate, device)
    sequences = (
        cell.batch_size * (math.ceil((cell.context_tokens + cell.output_tokens) / block) + 1) for cell in cells
    )
    return groups * max(sequences) + 1


def block_tokens(candidate: Candidate, device: DeviceType) -> int:
    """Tokens of a block."""
    return int(candidate.setting("block_size") or DEFAULT_BLOCKS[device])
