"""What can be chosen in vLLM, and what stands in the way of it on this machine. vLLM itself is not asked: it lives in
another Python."""

from __future__ import annotations

from dataclasses import replace

from kvray.candidate import (
    AttentionBackend,
    CacheStrategy,
    Candidate,
    CompileMode,
    DeviceType,
    DType,
    ParamValue,
)
from kvray.engines.base import DeviceFacts
from kvray.engines.vllm.arguments import CUDAGRAPH_MODE, DEFAULT_BLOCKS, THREADS_BIND
from kvray.probes.cpu import cpu_flags
from kvray.space.axis import Axis, AxisKind, AxisRequest, AxisValue, Scale, flag_axis, number_axis
from kvray.space.menu import shared_axis
from kvray.workload import WorkloadProfile

ADA = (8, 9)
BLACKWELL = (10, 0)
HOPPER = (9, 0)
DEFAULT_LEVEL = 2
_FP8 = ("fp8", "fp8_e4m3", "fp8_e5m2")
_KV_DTYPES = (*_FP8, "int8_per_token_head", "int4_per_token_head", "fp8_per_token_head", "nvfp4")
_BLOCKS = (16, 32, 64, 128, 256)
_NEEDS_GPU = "needs a CUDA GPU"
_BACKENDS = ("CPU_ATTN", "FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "FLEX_ATTENTION")
_GRAPH_MODES = ("NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")


def axes(device: DeviceFacts) -> tuple[Axis, ...]:
    """Every axis on `device`. The default of an axis is that of `vllm serve`."""
    return (*_shared_axes(device), *_cache_axes(device), *_scheduler_axes(), *_compile_axes(device))


def cache_of_types(candidate: Candidate) -> CacheStrategy:
    """`quantized` where keys and values have fewer bits than the weights, else `paged`. Pages they are in both."""
    return CacheStrategy.PAGED if candidate.setting("kv_cache_dtype") is None else CacheStrategy.QUANTIZED


def _cache_follows_type(candidate: Candidate) -> Candidate:
    if candidate.cache not in (CacheStrategy.PAGED, CacheStrategy.QUANTIZED):
        return candidate
    return replace(candidate, cache=cache_of_types(candidate))


def _shared_axes(device: DeviceFacts) -> tuple[Axis, ...]:
    eager_only = "vLLM decides by itself what it compiles: take default, and the axis optimization_level"
    return (
        shared_axis(
            "cache",
            (AxisValue(value=one.value) for one in (CacheStrategy.PAGED, CacheStrategy.QUANTIZED)),
            follows=_cache_follows_type,
        ),
        shared_axis("attention", (AxisValue(value=AttentionBackend.FLASH.value),)),
        shared_axis("dtype", (_dtype(dtype, device) for dtype in DType)),
        shared_axis(
            "compile",
            (
                AxisValue(
                    value=mode.value,
                    obstacle=None if mode in (CompileMode.OFF, CompileMode.DEFAULT) else eager_only,
                )
                for mode in CompileMode
            ),
        ),
    )


def _dtype(dtype: DType, device: DeviceFacts) -> AxisValue:
    obstacle = on_request = None
    if dtype is DType.FLOAT32:
        on_request = "twice the memory and time of a 16-bit type"
    elif dtype is DType.FLOAT16:
        on_request = "as fast as bfloat16, and overflows sooner"
    if dtype is DType.BFLOAT16 and (device.compute_capability or ADA) < (8, 0):
        obstacle, on_request = "needs compute capability 8.0", None
    return AxisValue(value=dtype.value, obstacle=obstacle, on_request=on_request)


def _cache_axes(device: DeviceFacts) -> tuple[Axis, ...]:
    return (
        Axis(
            name="kv_cache_dtype",
            title="type of keys and values",
            kind=AxisKind.CHOICE,
            values=(AxisValue(value="auto"), *(_kv_dtype(name, device) for name in _KV_DTYPES)),
            default="auto",
            canonical=_same_kv_dtype,
        ),
        number_axis(
            "block_size",
            "tokens of a block",
            unit="tokens",
            values=(_block(size, device) for size in _BLOCKS),
            most=1024,
            default=DEFAULT_BLOCKS[device.device],
            on_request="any other multiple (--set block_size=…)",
        ),
        Axis(
            name="attention_backend",
            title="attention kernels",
            kind=AxisKind.CHOICE,
            values=tuple(_backend(name, device) for name in _BACKENDS),
            aliases={"auto": None},
            default="CPU_ATTN" if device.device is DeviceType.CPU else None,
        ),
        flag_axis("enable_prefix_caching", "prefix caching", default=True),
        number_axis(
            "kv_offloading_size",
            "host memory for blocks that a GPU has no room for (GiB)",
            unit="GiB",
            obstacle=_gpu_obstacle(device),
            on_request="helps only where prompts come again (--set kv_offloading_size=…)",
        ),
    )


def _scheduler_axes() -> tuple[Axis, ...]:
    return (
        flag_axis(
            "enable_chunked_prefill", "prompts in pieces", default=True, on_request="not supported officially by vLLM"
        ),
        number_axis(
            "max_num_batched_tokens",
            "tokens that are worked on at once",
            unit="tokens",
            most=1 << 20,
            on_request="longer prompts are read in pieces",
        ),
        number_axis(
            "max_num_seqs",
            "sequences at once",
            unit="sequences",
            most=1 << 16,
            on_request="more requests than that wait",
        ),
    )


def _compile_axes(device: DeviceFacts) -> tuple[Axis, ...]:
    on_cpu = device.device is DeviceType.CPU
    levels = tuple(
        AxisValue(value=str(level), on_request=None if level == DEFAULT_LEVEL else "starts faster or runs faster")
        for level in range(4)
    )
    return (
        Axis(
            name="optimization_level",
            title="compilation level (-O)",
            kind=AxisKind.NUMBER,
            scale=Scale.LINEAR,
            values=levels,
            least=0,
            most=3,
            default=DEFAULT_LEVEL,
            canonical=_only_compiled,
        ),
        Axis(
            name=CUDAGRAPH_MODE,
            title="what CUDA graphs hold",
            kind=AxisKind.CHOICE,
            values=tuple(AxisValue(value=mode, obstacle=_gpu_obstacle(device)) for mode in _GRAPH_MODES),
            default="FULL_AND_PIECEWISE" if not on_cpu else None,
            canonical=_only_compiled,
        ),
        Axis(
            name=THREADS_BIND,
            title="how threads are bound to CPUs",
            kind=AxisKind.CHOICE,
            values=(
                AxisValue(value="auto", obstacle=None if on_cpu else "GPUs compute"),
                AxisValue(value="nobind", obstacle=None if on_cpu else "GPUs compute"),
            ),
            default="auto",
        ),
    )


def _kv_dtype(name: str, device: DeviceFacts) -> AxisValue:
    obstacle = on_request = None
    if device.device is DeviceType.CPU:
        if name not in _FP8:
            obstacle = "vLLM has this for GPUs only"
        elif name in _FP8 and not _has_fp8_kernels():
            obstacle = "needs a CPU with AVX-512 or AMX"
        elif name == "fp8_e5m2":
            on_request = "rounds more than fp8, which is e4m3"
    else:
        needed = {"nvfp4": BLACKWELL, **dict.fromkeys(_FP8, ADA), "fp8_per_token_head": ADA}.get(name)
        own = device.compute_capability
        if needed is not None and own is not None and own < needed:
            obstacle = f"needs compute capability {needed[0]}.{needed[1]}, this GPU has {own[0]}.{own[1]}"
        elif name != "fp8":
            on_request = "fp8 is the usual compromise"
    if name == "fp8_e4m3":
        on_request = None if obstacle else "the same as fp8"
    return AxisValue(value=name, obstacle=obstacle, on_request=on_request)


def _block(size: int, device: DeviceFacts) -> AxisValue:
    on_cpu = device.device is DeviceType.CPU
    is_odd = on_cpu and size % 32
    return AxisValue(value=str(size), obstacle="vLLM's CPU kernels take multiples of 32" if is_odd else None)


def _backend(name: str, device: DeviceFacts) -> AxisValue:
    on_cpu = device.device is DeviceType.CPU
    if name == "CPU_ATTN":
        return AxisValue(value=name, obstacle=None if on_cpu else "vLLM has this for CPUs only")
    on_request = "slow, for masks of any kind" if name == "FLEX_ATTENTION" else None
    return AxisValue(value=name, obstacle=_gpu_obstacle(device), on_request=on_request)


def _gpu_obstacle(device: DeviceFacts) -> str | None:
    return _NEEDS_GPU if device.device is DeviceType.CPU else None


def _same_kv_dtype(value: ParamValue, candidate: Candidate, profile: WorkloadProfile) -> AxisRequest:
    """`fp8_e4m3` is `fp8`."""
    del candidate, profile
    return "fp8" if value == "fp8_e4m3" else value


def _only_compiled(value: ParamValue, candidate: Candidate, profile: WorkloadProfile) -> AxisRequest:
    """Without compilation there is no level, and there are no graphs."""
    del profile
    return None if candidate.compile is CompileMode.OFF else value


def _has_fp8_kernels() -> bool:
    """Whether this CPU has what vLLM's kernels for 8-bit keys and values take."""
    return bool({"avx512f", "amx_bf16"} & cpu_flags())
