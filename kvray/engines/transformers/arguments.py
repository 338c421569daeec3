"""What a candidate means to Transformers, as plain data. The measurement executes it and the snippet prints it, so the
two cannot drift apart. Imports no torch."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kvray.candidate import SPLIT, AttentionBackend, CacheStrategy, Candidate, CompileMode, ParamValue
from kvray.workload import Cell

RANDOM_WEIGHTS_SEED = 2
"""So that a `random:` model has the same weights in every process."""
SLIDING_WINDOW_CLASS = "SlidingWindowCache"
"""Ours, not the library's: see `sliding_window`."""
PAGED_CLASS = "PagedAttentionCache"
"""Made by the library's continuous batching, never by us."""

XFORMERS = "xformers"
"""The name under which `xformers_attention` registers itself."""

MOST_CPU_RANKS = 8
"""Processes among which a CPU is divided, for those who want to see that tensor parallelism works."""

_FORCED_KERNEL = {
    AttentionBackend.SDPA_FLASH: "FLASH_ATTENTION",
    AttentionBackend.SDPA_EFFICIENT: "EFFICIENT_ATTENTION",
    AttentionBackend.SDPA_MATH: "MATH",
    AttentionBackend.SDPA_CUDNN: "CUDNN_ATTENTION",
}
_CACHE_CLASS = {
    CacheStrategy.DYNAMIC: "DynamicCache",
    CacheStrategy.STATIC: "StaticCache",
    CacheStrategy.SLIDING_WINDOW: SLIDING_WINDOW_CLASS,
    CacheStrategy.OFFLOADED: "DynamicCache",
    CacheStrategy.OFFLOADED_STATIC: "StaticCache",
    CacheStrategy.QUANTIZED: "QuantizedCache",
    CacheStrategy.PAGED: PAGED_CLASS,
}
_HQQ_AXES: Mapping[str, ParamValue] = {"axis_key": 1, "axis_value": 1}
"""Groups along which `hqq` quantises several times faster than along the library's default axis 0."""
_OFFLOADED = (CacheStrategy.OFFLOADED, CacheStrategy.OFFLOADED_STATIC)


class Split(enum.StrEnum):
    """How a model is spread over several GPUs."""

    DEVICE_MAP = "device_map"
    """Whole layers on each, one GPU at work at a time (accelerate)."""
    TP = "tp"
    """A part of every layer on each, all at work at the same time, one process for each (tensor parallelism)."""


@dataclass(frozen=True, kw_only=True)
class CallArguments:
    """How to load and call for one candidate.

    Attributes:
        dtype: attribute of `torch`, passed to `from_pretrained(dtype=…)`.
        attn_implementation: passed to `from_pretrained`.
        sdpa_kernel: member of `torch.nn.attention.SDPBackend` to force around `generate`, or `None`.
        cache_class: class whose instance is passed as `past_key_values`.
        cache_options: what that class takes beside `config` and, if `static_cache`, `max_cache_len`.
        cache_tokens: the least `max_cache_len` of a static cache; `None`: the cell's length.
        static_cache: whether that class takes `max_cache_len`.
        paged: whether `generate_batch` runs in place of `generate`.
        compile_mode: passed to `CompileConfig(mode=…)`; `None` disables compilation.
        prefill_chunk_size: passed to `generate`.
        weights_limit_mib: memory of the first GPU in `from_pretrained(max_memory=…)`, `None`: all weights on it.
        split: how the model is spread over `gpus`, `None`: it is on one.
    """

    dtype: str
    attn_implementation: str
    sdpa_kernel: str | None
    cache_class: str
    cache_options: tuple[tuple[str, ParamValue], ...]
    cache_tokens: int | None
    static_cache: bool
    paged: bool
    compile_mode: str | None
    prefill_chunk_size: int | None
    weights_limit_mib: int | None
    split: Split | None = None
    gpus: int = 1

    @property
    def generate_options(self) -> dict[str, bool | int | None]:
        """Given to every `generate`, beside the settings that `one_sequence` leaves of the checkpoint's own.

        `use_cache=False` would leave the cache object that is passed empty with no more than a warning.
        """
        return {
            "do_sample": False,
            "num_beams": 1,
            "use_cache": True,
            "disable_compile": self.compile_mode is None,
            "prefill_chunk_size": self.prefill_chunk_size,
        }

    def cache_length(self, cell: Cell) -> int:
        """Tokens that a static cache holds for `cell`: prompt and output, and no fewer than its own fixed number."""
        return max(self.cache_tokens or 0, cell.context_tokens + cell.output_tokens)

    def kept_lengths(self, cells: Iterable[Cell]) -> tuple[int, ...]:
        """The lengths of static caches that code which applies the candidate keeps: those of the measured `cells`.
        Compiled code is made for one length, so there the longest serves shorter calls too."""
        lengths = sorted({self.cache_length(cell) for cell in cells})
        return tuple(lengths if self.compile_mode is None else lengths[-1:])


LENGTH_STEP = 256
"""Static caches that are longer than any measured one hold a multiple of so many tokens, so that they can be reused."""


def kept_length(tokens: int, lengths: Iterable[int]) -> int:
    """Which of `kept_lengths` serves a call of `tokens`: the shortest that holds it, or a longer one of whole steps."""
    return next((length for length in lengths if length >= tokens), -(-tokens // LENGTH_STEP) * LENGTH_STEP)


def call_arguments(candidate: Candidate) -> CallArguments:
    """The arguments that apply `candidate`, whose settings `settings_objection` has passed."""
    cache, params = candidate.cache, dict(candidate.cache_params)
    tokens = params.pop("max_cache_len", None)
    if cache in _OFFLOADED:
        params["offloading"] = True
    if params.get("backend") == "hqq":
        params = {**_HQQ_AXES, **params}
    return CallArguments(
        dtype=candidate.dtype.value,
        attn_implementation=_attn_implementation(candidate),
        sdpa_kernel=_FORCED_KERNEL.get(candidate.attention),
        cache_class=_CACHE_CLASS[cache],
        cache_options=tuple(sorted(params.items())),
        cache_tokens=int(tokens) if tokens is not None else None,
        static_cache=cache.has_fixed_size,
        paged=cache is CacheStrategy.PAGED,
        compile_mode=None if candidate.compile is CompileMode.OFF else candidate.compile.value,
        prefill_chunk_size=candidate.prefill_chunk,
        weights_limit_mib=candidate.weights_limit_mib,
        split=split_of(candidate),
        gpus=candidate.parallelism,
    )


def split_of(candidate: Candidate) -> Split | None:
    """How the candidate is spread over its GPUs; `None`: it is on one, or does not say."""
    way = candidate.setting(SPLIT)
    return next((one for one in Split if one == way), None) if candidate.parallelism > 1 else None


def _attn_implementation(candidate: Candidate) -> str:
    if candidate.hub_kernel is not None:
        return candidate.hub_kernel
    return "sdpa" if candidate.attention in _FORCED_KERNEL else candidate.attention.value


QUANTIZED_BITS: Mapping[str, tuple[int, ...]] = {"quanto": (2, 4), "hqq": (1, 2, 3, 4, 8), "fp8": ()}
"""What each backend of `QuantizedCache` stores; names are case-sensitive, and `fp8` takes no `nbits`."""
_GROUP_WISE = ("nbits", "axis_key", "axis_value", "q_group_size", "residual_length")
_KNOWN_PARAMETERS: Mapping[CacheStrategy, tuple[str, ...]] = {
    CacheStrategy.STATIC: ("max_cache_len",),
    CacheStrategy.OFFLOADED_STATIC: ("max_cache_len",),
    CacheStrategy.SLIDING_WINDOW: ("window", "sinks"),
    CacheStrategy.QUANTIZED: ("backend", *_GROUP_WISE),
}


def settings_objection(candidate: Candidate) -> str | None:
    """Why a setting is unknown, or a cache parameter not what its strategy takes; `None` if all are as they must be.

    The library ignores or misreads some of these without a word, so they are checked here.
    """
    if others := [name for name, _ in candidate.settings if name != SPLIT]:
        return f"Transformers has no axis {', '.join(others)}"
    if candidate.parallelism > 1 and candidate.setting(SPLIT) not in list(Split):
        ways = " or ".join(f"{one}={candidate.parallelism}" for one in Split)
        return f"{candidate.parallelism} GPUs can be used in several ways: {ways}"
    params = dict(candidate.cache_params)
    known = _KNOWN_PARAMETERS.get(candidate.cache, ())
    if unknown := sorted(set(params) - set(known)):
        takes = ", ".join(known) or "no settings"
        return f"{candidate.cache} does not take {', '.join(unknown)}: it takes {takes}"
    if wrong := sorted(name for name, value in params.items() if name != "backend" and type(value) is not int):
        return f"{', '.join(wrong)} of {candidate.cache} must be a whole number"
    if candidate.cache is CacheStrategy.SLIDING_WINDOW:
        return _window_objection(params)
    if candidate.cache is CacheStrategy.QUANTIZED:
        return _quantized_objection(params)
    return None


def _window_objection(params: Mapping[str, ParamValue]) -> str | None:
    if set(params) != {"window", "sinks"}:
        return "sliding_window needs both window and sinks, in tokens"
    if not 0 <= int(params["sinks"]) < int(params["window"]):
        return f"sinks={params['sinks']} must be less than window={params['window']}"
    return None


def _quantized_objection(params: Mapping[str, ParamValue]) -> str | None:
    backend = params.get("backend")
    if backend not in QUANTIZED_BITS:
        return f"quantized needs a backend, one of {', '.join(QUANTIZED_BITS)}, not {backend!r}"
    if backend == "fp8":
        given = [name for name in _GROUP_WISE if name in params]
        return f"the fp8 backend does not take {', '.join(given)}" if given else None
    allowed = QUANTIZED_BITS[str(backend)]
    if params.get("nbits") not in allowed:
        return f"{backend} needs nbits, one of {', '.join(map(str, allowed))}, not {params.get('nbits')!r}"
    return None
