"""The default space and the full one, as blocks of axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvray.candidate import (
    SPLIT,
    AttentionBackend,
    AttentionChoice,
    CacheChoice,
    CacheStrategy,
    Candidate,
    CompileMode,
    DeviceType,
    DType,
    ParallelChoice,
)
from kvray.engines.base import DeviceFacts, ModelInfo
from kvray.engines.transformers.arguments import Split
from kvray.engines.transformers.cost_memory import memory_need
from kvray.engines.transformers.menu import cache_choices, menu
from kvray.engines.transformers.rules import longest_tokens
from kvray.forecast.memory import MIB
from kvray.forecast.prediction import MARGIN
from kvray.space.axis import with_settings
from kvray.space.menu import MenuLine
from kvray.space.search_space import SpaceBlock
from kvray.workload import Cell, WorkloadProfile

SINK_TOKENS = 4
"""Attention sinks that a window keeps; four suffice by Xiao et al. 2023 (arXiv:2309.17453), section 3.1."""
LARGEST_WINDOW = 1024
SMALLEST_WINDOW = 64
LONG_PROMPT = 4096
CHUNK_TOKENS = 1024
_BESIDE_ALLOCATOR_MIB = 600.0
"""What a process takes of a GPU beside its allocator: its CUDA context and libraries, roughly."""
_DYNAMIC, _STATIC = CacheChoice(CacheStrategy.DYNAMIC), CacheChoice(CacheStrategy.STATIC)


def resolve_cache(choice: CacheChoice, device: DeviceFacts, profile: WorkloadProfile) -> tuple[CacheChoice, ...]:
    """A choice with nothing left open: a bare `sliding_window` gets a window of half the longest sequence (at most
    `LARGEST_WINDOW` tokens), a bare `quantized` becomes every variant that this machine can run."""
    if choice.strategy is CacheStrategy.SLIDING_WINDOW:
        half = max(SMALLEST_WINDOW, min(LARGEST_WINDOW, longest_tokens(profile) // 2))
        return (
            CacheChoice(choice.strategy, tuple({"sinks": SINK_TOKENS, "window": half, **dict(choice.params)}.items())),
        )
    if choice.strategy is CacheStrategy.QUANTIZED and not choice.params:
        variants = [one for one in cache_choices() if one.strategy is CacheStrategy.QUANTIZED]
        available = [one for one in variants if not _entry(menu(device), "cache", str(one)).obstacle]
        return tuple(available or variants)
    return (choice,)


def default_attention(model: ModelInfo, device: DeviceFacts) -> AttentionChoice:
    """What runs when no attention is asked for. Where the config names one that cannot be had on `device`, SDPA takes
    its place, or eager where the architecture has no SDPA."""
    entries = menu(device)
    for choice in (model.default_attention, _SDPA):
        lacking = choice.backend in model.missing_attentions
        if not lacking and _entry(entries, "attention", choice.backend.value).obstacle is None:
            return choice
    return AttentionChoice(AttentionBackend.EAGER)


def default_space(model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
    """What a user should know of their model after one sweep: 8-12 candidates on a CPU, 20-40 on a GPU."""
    offered = _Offered(menu(device), device, profile)
    main = SpaceBlock(
        caches=(_DYNAMIC, _STATIC),
        attentions=offered.attentions(_MAIN_ATTENTION[device.device]),
        dtypes=offered.dtypes(model),
        batch_sizes=profile.batch_sizes,
    )
    usual = default_attention(model, device)
    lean = replace(main, caches=(_DYNAMIC,), attentions=(usual,), dtypes=(offered.lean_dtype(model),))
    savers = replace(lean, caches=offered.savers())
    blocks = [main, replace(lean, attentions=offered.attentions(_RARE_ATTENTION[device.device])), savers]
    if device.device is DeviceType.CUDA:
        blocks[1:1] = [
            replace(
                main,
                caches=(_STATIC,),
                attentions=offered.attentions(_COMPILED_ATTENTION),
                compiles=(CompileMode.DEFAULT, CompileMode.REDUCE_OVERHEAD),
            )
        ]
        if max(profile.context_lengths) >= LONG_PROMPT:
            blocks.append(lean.having({"prefill_chunk": (CHUNK_TOKENS,)}))
    return (*blocks, *(_on(choice, lean) for choice in several_gpus(model, device, profile)))


def several_gpus(model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[ParallelChoice, ...]:
    """Over how many GPUs of a host with several it is worth to spread the model: whole layers over the fewest that hold
    it where one does not, and tensor parallelism over two, four … of them, from as many as hold it."""
    if device.device is not DeviceType.CUDA or device.gpu_count < 2:
        return ()
    fewest = fewest_gpus(model, device, profile.cells(min(profile.batch_sizes), rung=1))
    if fewest is None:
        return ()
    choices = [ParallelChoice(fewest, Split.DEVICE_MAP)] if fewest > 1 else []
    if model.tensor_parallel and model.packing is None:
        counts = [gpus for gpus in (2, 4, 8) if fewest <= gpus <= device.gpu_count]
        choices += [ParallelChoice(gpus, Split.TP) for gpus in counts]
    return tuple(choices)


def fewest_gpus(model: ModelInfo, device: DeviceFacts, cells: Sequence[Cell]) -> int | None:
    """On how many GPUs the model and a growing cache for `cells` fit by forecast, at least; `None`: on no number of
    those that are there. 1 where nothing can be forecast."""
    if model.shape is None or device.gpu_memory_mib is None:
        return 1
    usable = device.gpu_memory_mib * (1 - MARGIN) - _BESIDE_ALLOCATOR_MIB
    for gpus in range(1, device.gpu_count + 1):
        one = spread_by_layers(
            Candidate(
                engine="transformers",
                cache=CacheStrategy.DYNAMIC,
                attention=AttentionBackend.SDPA,
                dtype=model.native_dtype,
            ),
            gpus,
        )
        needs = [memory_need(model.shape, one, cell, device.device).peak_over(gpus) / gpus for cell in cells]
        if max(needs) / MIB <= usable:
            return gpus
    return None


def spread_by_layers(candidate: Candidate, gpus: int) -> Candidate:
    """`candidate` with its layers spread over so many GPUs."""
    if gpus == 1:
        return candidate
    return with_settings(replace(candidate, parallelism=gpus), {SPLIT: Split.DEVICE_MAP.value})


def _on(choice: ParallelChoice, block: SpaceBlock) -> SpaceBlock:
    caches = (_DYNAMIC, _STATIC) if choice.split == Split.TP else (_DYNAMIC,)
    return replace(block, caches=caches, parallelisms=(choice.gpus,)).having({SPLIT: (choice.split,)})


def full_space(model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
    """Every value that this machine offers, in every combination; the rules sort out what cannot be."""
    del model
    offered = _Offered(menu(device), device, profile)
    named = (AttentionBackend.HUB_KERNEL,)
    return (
        SpaceBlock(
            caches=tuple(one for choice in cache_choices() for one in offered.cache(choice)),
            attentions=offered.attentions(tuple(one for one in AttentionBackend if one not in named)),
            dtypes=tuple(dtype for dtype in DType if offered.has("dtype", dtype.value)),
            compiles=tuple(mode for mode in CompileMode if offered.has("compile", mode.value)),
            batch_sizes=profile.batch_sizes,
            settings={"prefill_chunk": (None, CHUNK_TOKENS)} if max(profile.context_lengths) > CHUNK_TOKENS else {},
        ),
    )


_SDPA = AttentionChoice(AttentionBackend.SDPA)
_MAIN_ATTENTION = {
    DeviceType.CPU: (AttentionBackend.EAGER, AttentionBackend.SDPA),
    DeviceType.CUDA: (
        AttentionBackend.SDPA,
        AttentionBackend.SDPA_FLASH,
        AttentionBackend.SDPA_EFFICIENT,
        AttentionBackend.SDPA_CUDNN,
        AttentionBackend.FLASH_ATTENTION_2,
        AttentionBackend.FLASH_ATTENTION_3,
    ),
}
_COMPILED_ATTENTION = (AttentionBackend.SDPA, AttentionBackend.SDPA_FLASH, AttentionBackend.SDPA_EFFICIENT)
_RARE_ATTENTION = {
    DeviceType.CPU: (AttentionBackend.SDPA_MATH,),
    DeviceType.CUDA: (
        AttentionBackend.EAGER,
        AttentionBackend.SDPA_MATH,
        AttentionBackend.FLEX_ATTENTION,
        AttentionBackend.XFORMERS,
    ),
}


@dataclass(frozen=True)
class _Offered:
    """The menu, asked what of it can be had."""

    entries: tuple[MenuLine, ...]
    device: DeviceFacts
    profile: WorkloadProfile

    def has(self, axis: str, value: str) -> bool:
        return _entry(self.entries, axis, value).obstacle is None

    def attentions(self, wanted: tuple[AttentionBackend, ...]) -> tuple[AttentionChoice, ...]:
        return tuple(AttentionChoice(one) for one in wanted if self.has("attention", one.value))

    def cache(self, choice: CacheChoice) -> tuple[CacheChoice, ...]:
        if not self.has("cache", str(choice)):
            return ()
        return resolve_cache(choice, self.device, self.profile)

    def savers(self) -> tuple[CacheChoice, ...]:
        """Caches for less memory, of which none is on request only."""
        wanted = [one for one in cache_choices() if one not in (_DYNAMIC, _STATIC)]
        default = [one for one in wanted if _entry(self.entries, "cache", str(one)).on_request is None]
        return tuple(resolved for one in default for resolved in self.cache(one))

    def dtypes(self, model: ModelInfo) -> tuple[DType, ...]:
        """The dtypes that are not on request only, and in any case the model's own."""
        usual = [one for one in self.entries if one.axis == "dtype" and not one.obstacle and not one.on_request]
        return tuple(dtype for dtype in DType if dtype is model.native_dtype or dtype in {one.value for one in usual})

    def lean_dtype(self, model: ModelInfo) -> DType:
        return DType.BFLOAT16 if self.has("dtype", DType.BFLOAT16) else model.native_dtype


def _entry(entries: tuple[MenuLine, ...], axis: str, value: str) -> MenuLine:
    return next(one for one in entries if (one.axis, one.value) == (axis, value))
