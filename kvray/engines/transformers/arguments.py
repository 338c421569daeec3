"""What a candidate means to Transformers, as plain data. The measurement executes it and the snippet prints it, so the
two cannot drift apart. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, CompileMode
from kvray.workload import Cell

_ATTN_IMPLEMENTATION = {
    AttentionBackend.EAGER: "eager",
    AttentionBackend.SDPA: "sdpa",
    AttentionBackend.SDPA_FLASH: "sdpa",
    AttentionBackend.SDPA_EFFICIENT: "sdpa",
    AttentionBackend.SDPA_MATH: "sdpa",
    AttentionBackend.SDPA_CUDNN: "sdpa",
}
_FORCED_KERNEL = {
    AttentionBackend.SDPA_FLASH: "FLASH_ATTENTION",
    AttentionBackend.SDPA_EFFICIENT: "EFFICIENT_ATTENTION",
    AttentionBackend.SDPA_MATH: "MATH",
    AttentionBackend.SDPA_CUDNN: "CUDNN_ATTENTION",
}
RANDOM_WEIGHTS_SEED = 2
"""So that a `random:` model has the same weights in every process."""
_CACHE_CLASS = {CacheStrategy.DYNAMIC: "DynamicCache", CacheStrategy.STATIC: "StaticCache"}


@dataclass(frozen=True, kw_only=True)
class CallArguments:
    """How to load and call for one candidate.

    Attributes:
        dtype: attribute of `torch`, passed to `from_pretrained(dtype=…)`.
        attn_implementation: passed to `from_pretrained`.
        sdpa_kernel: member of `torch.nn.attention.SDPBackend` to force around `generate`, or `None`.
        cache_class: class of `transformers` whose instance is passed as `past_key_values`.
        static_cache: whether that class takes `max_cache_len`.
        compile_mode: passed to `CompileConfig(mode=…)`; `None` disables compilation.
    """

    dtype: str
    attn_implementation: str
    sdpa_kernel: str | None
    cache_class: str
    static_cache: bool
    compile_mode: str | None

    @property
    def generate_options(self) -> dict[str, bool | int | None]:
        """Given to every `generate`, against what the checkpoint's generation config may say: one greedy sequence
        through the cache object that is passed.

        `use_cache=False` would leave that object empty with no more than a warning, and a `cache_implementation`
        beside it is an error. Whatever else the checkpoint asks for holds, such as its `repetition_penalty`.
        """
        return {
            "do_sample": False,
            "num_beams": 1,
            "use_cache": True,
            "cache_implementation": None,
            "disable_compile": self.compile_mode is None,
        }


def call_arguments(candidate: Candidate) -> CallArguments:
    """The arguments that apply `candidate`."""
    return CallArguments(
        dtype=candidate.dtype.value,
        attn_implementation=_ATTN_IMPLEMENTATION[candidate.attention],
        sdpa_kernel=_FORCED_KERNEL.get(candidate.attention),
        cache_class=_CACHE_CLASS[candidate.cache],
        static_cache=candidate.cache is CacheStrategy.STATIC,
        compile_mode=None if candidate.compile is CompileMode.OFF else candidate.compile.value,
    )


def cache_length(cell: Cell) -> int:
    """Tokens that a static cache must hold for `cell`: prompt and output."""
    return cell.context_tokens + cell.output_tokens
