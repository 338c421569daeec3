"""Every value of every axis, and what stands in its way here: packages and hardware, found out without importing."""

from __future__ import annotations

import functools
from importlib.metadata import version
from importlib.util import find_spec

from kvray.candidate import (
    SPLIT,
    AttentionBackend,
    CacheChoice,
    CacheStrategy,
    Candidate,
    CompileMode,
    DeviceType,
    DType,
    ParamValue,
)
from kvray.engines.base import DeviceFacts
from kvray.engines.transformers.arguments import QUANTIZED_BITS, Split
from kvray.extras import Extra
from kvray.space.axis import Axis, AxisKind, AxisRequest, AxisValue, Scale, number_axis
from kvray.space.menu import MenuLine, menu_of, shared_axis
from kvray.workload import WorkloadProfile

AMPERE = (8, 0)
HOPPER = (9, 0)
FP8_SINCE = (5, 21)
"""First minor version of Transformers whose `QuantizedCache` knows the backend `fp8`."""
_GENERATIONS = {AMPERE: "Ampere", HOPPER: "Hopper"}
_OTHER_WIDTH = "4 bits are the usual compromise; see how 2 or 8 do"
_OFFERED_BITS = {"quanto": (4, 2), "hqq": (8, 4, 2)}


def axes(device: DeviceFacts) -> tuple[Axis, ...]:
    """What can be chosen on `device`. A hub kernel is a family of values: its line stands for all of them."""
    return (
        shared_axis("cache", (_cache(choice, device) for choice in cache_choices())),
        shared_axis("attention", (_attention(attention, device) for attention in AttentionBackend)),
        shared_axis("dtype", (_dtype(dtype, device) for dtype in DType)),
        shared_axis("compile", (_compile(mode, device) for mode in CompileMode)),
        number_axis(
            "prefill_chunk",
            "prefill chunk (tokens)",
            unit="tokens",
            on_request="prompts in pieces save memory (--prefill-chunk)",
        ),
        Axis(
            name="weights_limit_mib",
            title="weights limit (MiB)",
            kind=AxisKind.NUMBER,
            scale=Scale.LOG,
            values=(_weights_limit(device),),
        ),
        Axis(
            name=SPLIT,
            title="split over GPUs",
            kind=AxisKind.CHOICE,
            values=tuple(_split(way, device) for way in Split),
            canonical=_only_over_several,
            option="--parallelism",
        ),
    )


def menu(device: DeviceFacts) -> tuple[MenuLine, ...]:
    """The lines of `axes`."""
    return menu_of(axes(device))


def cache_choices() -> tuple[CacheChoice, ...]:
    """Every strategy, a quantised cache once for each backend and width that is worth a line."""
    plain = [CacheChoice(strategy) for strategy in CacheStrategy if strategy is not CacheStrategy.QUANTIZED]
    return (*plain, *(quantized(backend, bits) for backend in QUANTIZED_BITS for bits in _offered(backend)))


def quantized(backend: str, bits: int | None) -> CacheChoice:
    """A quantised cache; `bits` is `None` where the backend has one width only."""
    settings: tuple[tuple[str, int | str], ...] = (("backend", backend),)
    if bits is not None:
        settings = (*settings, ("nbits", bits))
    return CacheChoice(CacheStrategy.QUANTIZED, settings)


def _offered(backend: str) -> tuple[int | None, ...]:
    return _OFFERED_BITS.get(backend, (None,))


def _cache(choice: CacheChoice, device: DeviceFacts) -> AxisValue:
    obstacle = on_request = None
    match choice.strategy:
        case CacheStrategy.OFFLOADED | CacheStrategy.OFFLOADED_STATIC:
            if device.device is DeviceType.CPU:
                obstacle = "moves the cache between GPU and host memory: needs a CUDA GPU"
        case CacheStrategy.QUANTIZED:
            params = dict(choice.params)
            obstacle = _quantized_obstacle(str(params["backend"]))
            if params.get("nbits") in (2, 8) or (device.device is DeviceType.CPU and params["backend"] != "fp8"):
                on_request = "slow on a CPU" if device.device is DeviceType.CPU else _OTHER_WIDTH
        case CacheStrategy.PAGED:
            if device.device is DeviceType.CPU:
                on_request = "made for many requests on a GPU"
    return AxisValue(value=str(choice), obstacle=obstacle, on_request=on_request)


def _quantized_obstacle(backend: str) -> str | None:
    if backend == "fp8":
        return _needs_transformers(FP8_SINCE)
    module = {"quanto": "optimum.quanto", "hqq": "hqq"}[backend]
    return None if _is_installed(module) else f"needs a package: {Extra.QUANTIZED.install_command} brings {backend}"


def _needs_transformers(since: tuple[int, int]) -> str | None:
    installed = version("transformers")
    if tuple(int(part) for part in installed.split(".")[:2]) >= since:
        return None
    return f"needs transformers {since[0]}.{since[1]} or newer, this is {installed}"


def _attention(attention: AttentionBackend, device: DeviceFacts) -> AxisValue:
    obstacle = on_request = None
    on_cpu = device.device is DeviceType.CPU
    match attention:
        case AttentionBackend.SDPA_EFFICIENT | AttentionBackend.SDPA_CUDNN:
            obstacle = "PyTorch has this kernel for CUDA only" if on_cpu else None
        case AttentionBackend.SDPA_FLASH:
            if on_cpu:
                on_request = "it is what sdpa runs on a CPU (records name the kernel)"
        case AttentionBackend.FLASH_ATTENTION_2:
            obstacle = _needs(device, package="flash-attn", module="flash_attn", capability=AMPERE)
        case AttentionBackend.FLASH_ATTENTION_3:
            obstacle = _needs(device, package="flash-attn-3", module="flash_attn_interface", capability=HOPPER)
        case AttentionBackend.FLEX_ATTENTION:
            if on_cpu:
                on_request = "compiles for half a minute first"
        case AttentionBackend.XFORMERS:
            obstacle = _needs(device, package="xformers", module="xformers", capability=None)
        case AttentionBackend.FLASH:
            obstacle = "Transformers has no fused kernel of its own: take sdpa_flash or flash_attention_2"
        case AttentionBackend.HUB_KERNEL:
            obstacle = _needs(device, package="kernels", module="kernels", capability=None)
            on_request = "by its name, e.g. kernels-community/flash-attn2"
    return AxisValue(value=attention.value, obstacle=obstacle, on_request=on_request)


def _needs(device: DeviceFacts, *, package: str, module: str, capability: tuple[int, int] | None) -> str | None:
    """The first thing that is missing: the GPU, its generation, or the package."""
    if device.device is DeviceType.CPU:
        return f"needs a CUDA GPU and the package {package}"
    if capability is not None and (shortfall := _too_old(device, capability)):
        return shortfall
    return None if _is_installed(module) else f"needs the package {package}"


def _too_old(device: DeviceFacts, capability: tuple[int, int]) -> str | None:
    own = device.compute_capability
    if own is None or own >= capability:
        return None
    needed = f"{capability[0]}.{capability[1]} ({_GENERATIONS[capability]})"
    return f"needs compute capability {needed}, this GPU has {own[0]}.{own[1]}"


def _dtype(dtype: DType, device: DeviceFacts) -> AxisValue:
    obstacle = on_request = None
    if device.device is DeviceType.CPU and dtype is DType.FLOAT16:
        on_request = "emulated on a CPU (prefill 6-10 times slower)"
    if device.device is DeviceType.CUDA:
        obstacle = _too_old(device, AMPERE) if dtype is DType.BFLOAT16 else None
        if dtype is DType.FLOAT32:
            on_request = "twice the memory and time of a 16-bit type"
        if dtype is DType.FLOAT16 and not _too_old(device, AMPERE):
            on_request = "as fast as bfloat16, and overflows sooner"
    return AxisValue(value=dtype.value, obstacle=obstacle, on_request=on_request)


def _compile(mode: CompileMode, device: DeviceFacts) -> AxisValue:
    obstacle = on_request = None
    if mode is CompileMode.REDUCE_OVERHEAD and device.device is DeviceType.CPU:
        obstacle = "CUDA graphs need a CUDA GPU"
    elif mode is CompileMode.MAX_AUTOTUNE_NO_CUDAGRAPHS or (
        mode is CompileMode.DEFAULT and device.device is DeviceType.CPU
    ):
        on_request = "compiles for minutes"
    return AxisValue(value=mode.value, obstacle=obstacle, on_request=on_request)


def _weights_limit(device: DeviceFacts) -> AxisValue:
    on_cpu = device.device is DeviceType.CPU
    return AxisValue(
        value="MiB",
        obstacle="leaves weights in host memory, where a CPU has them anyway: needs a CUDA GPU" if on_cpu else None,
        on_request="weights over a limit stay in host memory (--weights-limit)",
    )


def _split(way: Split, device: DeviceFacts) -> AxisValue:
    obstacle = on_request = None
    if device.device is DeviceType.CPU:
        obstacle = "spreads layers over several devices: needs CUDA GPUs" if way is Split.DEVICE_MAP else None
        on_request = "processes that share one CPU (--parallelism tp=2)"
    elif way is Split.DEVICE_MAP and not _is_installed("accelerate"):
        obstacle = "needs the package accelerate"
    elif device.gpu_count < 2:
        on_request = f"needs several GPUs (--parallelism {way}=2)"
    return AxisValue(value=way.value, obstacle=obstacle, on_request=on_request)


def _only_over_several(value: ParamValue, candidate: Candidate, profile: WorkloadProfile) -> AxisRequest:
    del profile
    return None if candidate.parallelism == 1 else value


@functools.cache
def _is_installed(module: str) -> bool:
    """Whether `module` could be imported; its parent package is imported for that where it has one."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
