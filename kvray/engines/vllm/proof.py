"""What vLLM really does, against what was asked for: its resolved configuration, and what its workers have loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvray.candidate import Candidate, CompileMode, DType

_EIGHT_BIT = {"fp8": "fp8_e4m3"}
"""Names that vLLM takes for the same."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the workers say (`worker.KvrayWorker.kvray_seen`), of all of them together.

    Attributes:
        backends: attention backend of each layer.
        kv_dtypes: types of the cache's tensors; 8-bit floats may lie in plain bytes.
        kv_cache_dtypes: type of keys and values as each layer understands it.
        kv_bytes: of all blocks.
        blocks, block_size: of one worker; the block has so many tokens.
    """

    backends: tuple[str, ...]
    kv_dtypes: tuple[str, ...]
    kv_cache_dtypes: tuple[str, ...]
    kv_bytes: int
    blocks: int
    block_size: int
    threads: int
    cudagraph_mode: str

    @classmethod
    def of(cls, answers: Sequence[Mapping[str, Any]]) -> Seen:
        """What the `answers` of the workers come to."""
        first = answers[0]
        return cls(
            backends=tuple(first["backends"]),
            kv_dtypes=tuple(first["kv_dtypes"]),
            kv_cache_dtypes=tuple(first["kv_cache_dtypes"]),
            kv_bytes=sum(int(one["kv_bytes"]) for one in answers),
            blocks=int(first["blocks"]),
            block_size=int(first["block_size"]),
            threads=int(first["threads"]),
            cudagraph_mode=str(first["cudagraph_mode"]),
        )


def kv_types(seen: Seen) -> str | None:
    """The type of keys and values, e.g. `bfloat16` or `fp8`."""
    asked = {one for one in seen.kv_cache_dtypes if one != "auto"}
    plain = set(seen.kv_dtypes)
    return " | ".join(sorted(asked - set(DType) or plain)) or None


def resolved(config: Any, seen: Seen) -> dict[str, Any]:
    """What vLLM's configuration came to, by the names of its arguments."""
    cache, scheduler, compilation = config.cache_config, config.scheduler_config, config.compilation_config
    return {
        "attention_backend": " | ".join(sorted(set(seen.backends))),
        "block_size": seen.block_size,
        "cudagraph_mode": seen.cudagraph_mode,
        "compilation": getattr(compilation.mode, "name", str(compilation.mode)),
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "enable_chunked_prefill": bool(scheduler.enable_chunked_prefill),
        "enable_prefix_caching": bool(cache.enable_prefix_caching),
        "kv_cache_dtype": str(cache.cache_dtype),
        "kv_tokens": (seen.blocks - 1) * seen.block_size,
        "max_model_len": int(config.model_config.max_model_len),
        "max_num_batched_tokens": int(scheduler.max_num_batched_tokens),
        "max_num_seqs": int(scheduler.max_num_seqs),
        "num_gpu_blocks_override": seen.blocks,
        "optimization_level": int(config.optimization_level),
        "tensor_parallel_size": int(config.parallel_config.tensor_parallel_size),
    }


def substitutions(candidate: Candidate, arguments: Mapping[str, Any], came_to: Mapping[str, Any]) -> tuple[str, ...]:
    """Where what runs is not what was asked for, one sentence each.

    Args:
        arguments: of `vllm.EngineArgs`.
        came_to: `resolved`.
    """
    asked = {name: value for name, value in arguments.items() if name in came_to}
    asked |= dict(arguments.get("compilation_config", {}))
    told = [
        f"{name} {came_to[name]} runs, {value} was asked for"
        for name, value in asked.items()
        if _plain(came_to[name]) != _plain(value)
    ]
    if candidate.compile is CompileMode.OFF and came_to["compilation"] != "NONE":
        told.append(f"the model is compiled ({came_to['compilation']}), which was not asked for")
    if candidate.compile is CompileMode.DEFAULT and came_to["compilation"] == "NONE" and _compiles(candidate):
        told.append("the model is not compiled, which was asked for")
    return tuple(told)


def _compiles(candidate: Candidate) -> bool:
    """Level 0 compiles nothing."""
    return candidate.setting("optimization_level") != 0


def _plain(value: Any) -> str:
    text = str(value)
    return _EIGHT_BIT.get(text, text)
