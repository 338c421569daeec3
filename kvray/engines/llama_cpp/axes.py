"""What can be chosen in llama.cpp, and what stands in the way of it on this machine and in this build."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

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
from kvray.engines.llama_cpp.build import Build, gpu_build_command, installed_build
from kvray.engines.llama_cpp.settings import (
    ALL_LAYERS,
    CACHE_TYPES,
    DEFAULT_BATCH,
    DEFAULT_POLL,
    DEFAULT_TYPE,
    DEFAULT_UBATCH,
    PLAIN_TYPES,
    SplitMode,
    context_tokens,
)
from kvray.engines.llama_cpp.threads import usual_threads
from kvray.models.config_file import MOST_LAYERS
from kvray.space.axis import Axis, AxisKind, AxisRequest, AxisValue, Scale, flag_axis, number_axis
from kvray.space.menu import shared_axis
from kvray.workload import WorkloadProfile

GPU_AXES = ("n_gpu_layers", "offload_kqv", "split_mode", "n_cpu_moe")
_MOST_THREADS = 512
"""`GGML_MAX_N_THREADS`."""


def axes(device: DeviceFacts) -> tuple[Axis, ...]:
    """Every axis on `device`, with the default of llama.cpp's command line tools."""
    build = installed_build()
    return (
        *_shared_axes(),
        *_own_axes(build, _threads_unset(device)),
        *_gpu_axes(_gpu_obstacle(device, build), device),
    )


def cache_of_types(candidate: Candidate) -> CacheStrategy:
    """`quantized` where keys or values are kept in blocks with a scale, else `static`."""
    types = {str(candidate.setting(name) or DEFAULT_TYPE) for name in ("type_k", "type_v")}
    return CacheStrategy.STATIC if types <= set(PLAIN_TYPES) else CacheStrategy.QUANTIZED


def _shared_axes() -> tuple[Axis, ...]:
    return (
        shared_axis(
            "cache",
            (AxisValue(value=one.value) for one in (CacheStrategy.STATIC, CacheStrategy.QUANTIZED)),
            follows=_cache_follows_types,
        ),
        shared_axis(
            "attention", (AxisValue(value=one.value) for one in (AttentionBackend.FLASH, AttentionBackend.EAGER))
        ),
        shared_axis("dtype", (AxisValue(value=DType.FLOAT32.value),)),
        shared_axis("compile", (AxisValue(value=CompileMode.OFF.value),)),
    )


def _threads_unset(device: DeviceFacts) -> int | None:
    """Threads of a trial that sets none; `None` where that depends on where and beside what it runs."""
    return None if device.trial_threads is None else device.trial_threads or usual_threads()


def _own_axes(build: Build | None, threads: int | None) -> tuple[Axis, ...]:
    has_openmp = build is not None and build.has_openmp
    return (
        Axis(
            name="type_k",
            title="type of keys",
            kind=AxisKind.CHOICE,
            values=tuple(map(_cache_type, CACHE_TYPES)),
            default=DEFAULT_TYPE,
        ),
        Axis(
            name="type_v",
            title="type of values",
            kind=AxisKind.CHOICE,
            values=tuple(map(_cache_type, CACHE_TYPES)),
            default=DEFAULT_TYPE,
        ),
        number_axis("n_ubatch", "tokens worked on at once", default=DEFAULT_UBATCH, canonical=_ubatch_within_batch),
        number_axis(
            "n_batch",
            "tokens handed over at once",
            default=DEFAULT_BATCH,
            canonical=_batch_within_context,
            on_request="matters for prompts of several sequences or beyond 2,048 tokens",
        ),
        number_axis("threads", "threads while generating", default=threads, most=_MOST_THREADS),
        number_axis(
            "threads_batch",
            "threads while reading a prompt",
            most=_MOST_THREADS,
            canonical=partial(_unlike_threads, threads),
            on_request="as many as while generating, unless set",
        ),
        number_axis(
            "poll",
            "how busily threads wait",
            unit="level",
            scale=Scale.LINEAR,
            least=0,
            most=100,
            default=None if has_openmp else DEFAULT_POLL,
            obstacle="this build computes with OpenMP, whose threads wait in their own way (OMP_WAIT_POLICY)"
            if has_openmp
            else None,
            on_request="50 unless set",
        ),
        flag_axis("swa_full", "all tokens kept in layers with a window", default=False, on_request="only takes memory"),
        flag_axis(
            "repack", "rearranged weights for this CPU", default=True, on_request="loads faster, computes slower"
        ),
        flag_axis(
            "kv_unified",
            "one buffer for all sequences",
            default=False,
            canonical=_only_of_several,
            on_request="worth it where sequences share a long beginning",
        ),
    )


def _gpu_axes(obstacle: str | None, device: DeviceFacts) -> tuple[Axis, ...]:
    # What cannot be had has no default either: a candidate that leaves it alone would be said to have it.
    here = obstacle is None
    several = obstacle or ("needs several GPUs" if device.gpu_count < 2 else None)
    return (
        number_axis(
            "n_gpu_layers",
            "layers on the GPU",
            least=0,
            most=MOST_LAYERS,
            canonical=_all_layers_unset,
            obstacle=obstacle,
            on_request="all unless set",
        ),
        flag_axis(
            "offload_kqv",
            "keys and values on the GPU",
            default=True if here else None,
            obstacle=obstacle,
            on_request="saves GPU memory, slower",
        ),
        Axis(
            name="split_mode",
            title="split over GPUs",
            kind=AxisKind.CHOICE,
            aliases={"one": SplitMode.NONE.value},  # because none leaves any axis unset
            values=tuple(
                AxisValue(value=one.value, obstacle=several, on_request="layer unless set") for one in SplitMode
            ),
            default=SplitMode.LAYER.value if several is None else None,
        ),
        number_axis(
            "n_cpu_moe",
            "layers whose experts stay in host memory",
            default=0 if here else None,
            least=0,
            most=MOST_LAYERS,
            obstacle=obstacle,
            on_request="for models with experts that the GPU does not hold",
        ),
    )


def _gpu_obstacle(device: DeviceFacts, build: Build | None) -> str | None:
    if device.device is DeviceType.CPU:
        return "needs a GPU and llama-cpp-python built for it"
    if build is not None and not build.has_gpu:
        return f"this llama-cpp-python was built for the CPU alone: {gpu_build_command()}"
    return None


def _cache_type(name: str) -> AxisValue:
    default_space = (DEFAULT_TYPE, "q8_0", "q4_0")
    return AxisValue(value=name, on_request=None if name in default_space else "measured with --set or --space full")


def _cache_follows_types(candidate: Candidate) -> Candidate:
    """A bare `quantized` cache is left as it is: a rule says what is missing."""
    fitting = cache_of_types(candidate)
    return replace(candidate, cache=fitting) if fitting is CacheStrategy.QUANTIZED else candidate


def _most_tokens(candidate: Candidate, profile: WorkloadProfile) -> int:
    """Tokens of the largest context that the workload needs."""
    unified = bool(candidate.setting("kv_unified"))
    return max(context_tokens(cell, unified=unified) for cell in profile.cells(candidate.batch_size, rung=2))


def _batch_within_context(value: ParamValue, candidate: Candidate, profile: WorkloadProfile) -> AxisRequest:
    most = _most_tokens(candidate, profile)
    return DEFAULT_BATCH if min(int(value), most) == min(DEFAULT_BATCH, most) else min(int(value), most)


def _ubatch_within_batch(value: ParamValue, candidate: Candidate, profile: WorkloadProfile) -> AxisRequest:
    most = min(_most_tokens(candidate, profile), int(candidate.setting("n_batch") or DEFAULT_BATCH))
    return DEFAULT_UBATCH if min(int(value), most) == min(DEFAULT_UBATCH, most) else min(int(value), most)


def _unlike_threads(
    unset: int | None, value: ParamValue, candidate: Candidate, profile: WorkloadProfile
) -> AxisRequest:
    del profile
    return None if value == (candidate.setting("threads") or unset) else value


def _only_of_several(value: ParamValue, candidate: Candidate, profile: WorkloadProfile) -> AxisRequest:
    del profile
    return None if candidate.batch_size == 1 else value


def _all_layers_unset(value: ParamValue, candidate: Candidate, profile: WorkloadProfile) -> AxisRequest:
    del candidate, profile
    return None if value == ALL_LAYERS else value
