"""The default space of llama.cpp and the full one, as blocks of axes."""

from __future__ import annotations

import itertools

from kvray.candidate import AttentionBackend, AttentionChoice, CacheChoice, CacheStrategy, DeviceType, DType
from kvray.engines.base import DeviceFacts, ModelInfo
from kvray.engines.llama_cpp.settings import CACHE_TYPES, DEFAULT_UBATCH, PLAIN_TYPES
from kvray.engines.llama_cpp.threads import default_threads
from kvray.probes.cpu import available_cpus, openmp_threads
from kvray.space.axis import AxisRequest
from kvray.space.search_space import SpaceBlock
from kvray.workload import WorkloadProfile

_STATIC, _QUANTIZED = CacheChoice(CacheStrategy.STATIC), CacheChoice(CacheStrategy.QUANTIZED)
_FLASH, _EAGER = AttentionChoice(AttentionBackend.FLASH), AttentionChoice(AttentionBackend.EAGER)
SAVING_TYPES = ("q8_0", "q4_0")
"""Types worth measuring by default: half and a quarter of f16."""
_SMALL_UBATCH, _LARGE_UBATCH = 128, 2048
_FULL_UBATCHES = (64, 128, 256, None, 1024, 2048)


def default_space(model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
    """What a user should know of their model after one sweep: cache types with the attention that they can have, and
    on a CPU how many tokens and threads are at work at once."""
    main = SpaceBlock(
        caches=(_STATIC,), attentions=(_FLASH, _EAGER), dtypes=(DType.FLOAT32,), batch_sizes=profile.batch_sizes
    )
    lean = main.having({"attention": (model.default_attention,)})
    quantized = lean.having({"cache": (_QUANTIZED,), "attention": (_FLASH,)})
    blocks = [main]
    blocks += [quantized.having({"type_k": (one,), "type_v": (one,)}) for one in SAVING_TYPES]
    if ubatches := _other_ubatches(profile):
        blocks += [lean.having({"n_ubatch": ubatches})]
    if device.device is DeviceType.CPU and (counts := _other_threads()):
        blocks += [lean.having({"threads": counts})]
    return tuple(blocks)


def full_space(model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
    """Every pair of types with every attention, and every value of the other axes beside the usual types."""
    main = SpaceBlock(
        caches=(_STATIC,), attentions=(_FLASH, _EAGER), dtypes=(DType.FLOAT32,), batch_sizes=profile.batch_sizes
    )
    plain = main.having({"type_k": _asked(PLAIN_TYPES), "type_v": _asked(PLAIN_TYPES)})
    blocks = [plain]
    for key, value in itertools.product(CACHE_TYPES, CACHE_TYPES):
        if not {key, value} <= set(PLAIN_TYPES):
            blocks.append(main.having({"cache": (_QUANTIZED,), "type_k": _asked((key,)), "type_v": _asked((value,))}))
    threads: tuple[AxisRequest, ...] = (None, *_other_threads())
    work = {"n_ubatch": _FULL_UBATCHES, "threads": threads, "threads_batch": threads, "repack": (None, False)}
    blocks.append(main.having(work))
    blocks += [
        main.having({"cache": (_QUANTIZED,), "type_k": (one,), "type_v": (one,), **work}) for one in SAVING_TYPES
    ]
    if "sliding_attention" in model.layer_kinds:
        blocks.append(main.having({"swa_full": (True,)}))
    if max(profile.batch_sizes) > 1:
        blocks.append(main.having({"kv_unified": (True,)}))
    if device.device is DeviceType.CUDA:
        blocks.append(main.having({"offload_kqv": (False,)}))
    return tuple(blocks)


def _other_ubatches(profile: WorkloadProfile) -> tuple[int, ...]:
    """Those beside the default that cut prompts in another way."""
    longest = max(profile.context_lengths) * max(profile.batch_sizes)
    small = (_SMALL_UBATCH,) if longest > _SMALL_UBATCH else ()
    return (*small, _LARGE_UBATCH) if longest > DEFAULT_UBATCH else small


def _other_threads() -> tuple[int, ...]:
    """Thread counts beside the default that are worth a look: half of it, and every CPU. None where the environment
    says how many there are to be."""
    if openmp_threads() is not None:
        return ()
    usual = default_threads()
    return tuple(sorted({max(1, usual // 2), available_cpus()} - {usual}))


def _asked(types: tuple[str, ...]) -> tuple[AxisRequest, ...]:
    """Types as requests: the default is not set."""
    return tuple(None if one == "f16" else one for one in types)
