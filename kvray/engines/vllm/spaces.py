"""The default space of vLLM and the full one, as blocks of axes."""

from __future__ import annotations

from kvray.candidate import (
    AttentionBackend,
    AttentionChoice,
    CacheChoice,
    CacheStrategy,
    CompileMode,
    DeviceType,
    DType,
)
from kvray.engines.base import DeviceFacts, ModelInfo
from kvray.engines.vllm.arguments import THREADS_BIND
from kvray.engines.vllm.axes import axes
from kvray.space.axis import AxisRequest
from kvray.space.menu import menu_of
from kvray.space.search_space import SpaceBlock
from kvray.workload import WorkloadProfile

CHUNK_TOKENS = 512
"""Worked on at once in place of the default, where prompts are longer: answers of others wait less."""
_PAGED = CacheChoice(CacheStrategy.PAGED)
_FLASH = AttentionChoice(AttentionBackend.FLASH)
_OTHER_BLOCKS = {DeviceType.CPU: (32, 256), DeviceType.CUDA: (32,)}
_GPU_GRAPHS = ("PIECEWISE", "FULL_DECODE_ONLY")
_GPU_COUNTS = (2, 4, 8)


def default_dtype(model: ModelInfo, device: DeviceFacts) -> DType:
    """What vLLM loads when nothing is asked for: never more than 16 bits."""
    if model.native_dtype is DType.FLOAT16 or _obstacle(device, "dtype", DType.BFLOAT16) is not None:
        return DType.FLOAT16
    return DType.BFLOAT16


def default_space(model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
    """What a user should know of their model after one sweep: compiled or not, the types of keys and values, and what
    each of the other axes does by itself."""
    main = _main(default_dtype(model, device), profile)
    lean = main.having({"compile": (CompileMode.DEFAULT,)})
    blocks = [main]
    blocks += [lean.having({name: values}) for name, values in _each_axis(device, profile).items() if values]
    blocks += [lean.having({"parallelism": (gpus,)}) for gpus in _GPU_COUNTS if gpus <= device.gpu_count]
    return tuple(blocks)


def full_space(model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
    """Every value that this machine offers of the axes that matter, in every combination."""
    each = _each_axis(device, profile)
    main = _main(default_dtype(model, device), profile)
    dtypes = tuple(dtype for dtype in DType if _obstacle(device, "dtype", dtype) is None)
    return (
        main.having({"dtype": dtypes}),
        main.having({name: (None, *values) for name, values in each.items() if values}),
    )


def _main(dtype: DType, profile: WorkloadProfile) -> SpaceBlock:
    return SpaceBlock(
        caches=(_PAGED,),
        attentions=(_FLASH,),
        dtypes=(dtype,),
        compiles=(CompileMode.DEFAULT, CompileMode.OFF),
        batch_sizes=profile.batch_sizes,
    )


def _each_axis(device: DeviceFacts, profile: WorkloadProfile) -> dict[str, tuple[AxisRequest, ...]]:
    """Values worth a look beside the default of each of the engine's own axes."""
    on_cpu = device.device is DeviceType.CPU
    longest = max(profile.context_lengths) * max(profile.batch_sizes)
    wanted: dict[str, tuple[AxisRequest, ...]] = {
        "kv_cache_dtype": ("fp8",),
        "block_size": _OTHER_BLOCKS[device.device],
        "attention_backend": () if on_cpu else ("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN"),
        "enable_prefix_caching": (False,),
        "max_num_batched_tokens": (CHUNK_TOKENS,) if longest > CHUNK_TOKENS else (),
        "cudagraph_mode": () if on_cpu else _GPU_GRAPHS,
        THREADS_BIND: ("nobind",) if on_cpu else (),
    }
    return {
        name: tuple(value for value in values if _obstacle(device, name, value) is None)
        for name, values in wanted.items()
    }


def _obstacle(device: DeviceFacts, axis: str, value: AxisRequest) -> str | None:
    lines = {(line.axis, line.value): line.obstacle for line in menu_of(axes(device))}
    return lines.get((axis, str(value)))
