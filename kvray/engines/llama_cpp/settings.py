"""`ContextSettings`: all that a llama.cpp model and context are made with for one candidate and cell.

The process that measures makes its context from it, and the printed `llama-server` command and the generated code say
the same, so there is one source. Defaults are those of llama.cpp's command line tools. Imports no library.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from kvray.candidate import AttentionBackend, Candidate, DeviceType
from kvray.engines.llama_cpp.threads import default_threads
from kvray.workload import Cell

PAD_TOKENS = 256
"""llama.cpp rounds the tokens of a context up to a multiple of it. Source: `llama_context::llama_context`."""
DEFAULT_BATCH, DEFAULT_UBATCH, DEFAULT_POLL = 2048, 512, 50
DEFAULT_TYPE = "f16"
ALL_LAYERS = -1
"""`n_gpu_layers` that puts every layer on the GPU."""
PLAIN_TYPES = ("f32", "f16", "bf16")
"""Types of keys and values that are plain numbers; all others come in blocks with a scale."""
CACHE_TYPES = (*PLAIN_TYPES, "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
"""What `llama-server -ctk` takes."""
BLOCK_ELEMENTS = 32
"""Elements of a block of every type that is not plain."""


class SplitMode(enum.StrEnum):
    """How a model is spread over several GPUs, as `llama-server -sm` has it."""

    NONE = "none"
    LAYER = "layer"
    ROW = "row"
    TENSOR = "tensor"


@dataclass(frozen=True, kw_only=True)
class ContextSettings:
    """What a model is loaded and a context is made with, after llama.cpp's own rounding: nothing here is changed by it.

    Attributes:
        n_ctx: tokens of all sequences together.
        n_seq_max: sequences.
        n_batch, n_ubatch: tokens that are handed over at once, and that are worked on at once.
        type_k, type_v: llama.cpp's names of the types in which keys and values are kept.
        threads, threads_batch: while tokens are generated, and while a prompt is read.
        poll: how busily threads wait for work, 0 to 100; without effect where the library was built with OpenMP.
        swa_full: whether layers with a sliding window keep all tokens.
        kv_unified: whether all sequences share one buffer.
        repack: whether weights are rearranged for the CPU's instructions when they are loaded.
        n_gpu_layers: layers on the GPU; `ALL_LAYERS`: every one.
        offload_kqv: whether keys and values of these layers lie on the GPU too.
        n_cpu_moe: layers, from the first, whose experts stay in host memory.
    """

    n_ctx: int
    n_seq_max: int
    n_batch: int
    n_ubatch: int
    type_k: str
    type_v: str
    flash_attention: bool
    threads: int
    threads_batch: int
    poll: int
    swa_full: bool
    kv_unified: bool
    repack: bool
    n_gpu_layers: int
    offload_kqv: bool
    split_mode: SplitMode
    n_cpu_moe: int


def context_settings(
    candidate: Candidate, cell: Cell, *, device: DeviceType, threads: int | None = None
) -> ContextSettings:
    """What `candidate` comes to for `cell`.

    Args:
        threads: where the candidate sets none; `None`: what llama.cpp takes in this process.
    """
    chosen = dict(candidate.settings)
    unified = cell.batch_size > 1 and bool(chosen.get("kv_unified", False))
    n_ctx = context_tokens(cell, unified=unified)
    n_batch = min(n_ctx, int(chosen.get("n_batch", DEFAULT_BATCH)))
    own_threads = int(chosen.get("threads", threads or default_threads()))
    return ContextSettings(
        n_ctx=n_ctx,
        n_seq_max=cell.batch_size,
        n_batch=n_batch,
        n_ubatch=min(n_batch, int(chosen.get("n_ubatch", DEFAULT_UBATCH))),
        type_k=str(chosen.get("type_k", DEFAULT_TYPE)),
        type_v=str(chosen.get("type_v", DEFAULT_TYPE)),
        flash_attention=candidate.attention is AttentionBackend.FLASH,
        threads=own_threads,
        threads_batch=int(chosen.get("threads_batch", own_threads)),
        poll=int(chosen.get("poll", DEFAULT_POLL)),
        swa_full=bool(chosen.get("swa_full", False)),
        kv_unified=unified,
        repack=bool(chosen.get("repack", True)),
        n_gpu_layers=int(chosen.get("n_gpu_layers", ALL_LAYERS)) if device is DeviceType.CUDA else 0,
        offload_kqv=bool(chosen.get("offload_kqv", True)),
        split_mode=SplitMode(str(chosen.get("split_mode", SplitMode.LAYER))),
        n_cpu_moe=int(chosen.get("n_cpu_moe", 0)),
    )


def largest_settings(candidate: Candidate, cells: Sequence[Cell], *, device: DeviceType) -> ContextSettings:
    """What holds each of `cells`: the settings of the one that needs the most tokens."""
    largest = max(cells, key=lambda cell: cell.batch_size * (cell.context_tokens + cell.output_tokens))
    return context_settings(candidate, largest, device=device)


def context_tokens(cell: Cell, *, unified: bool) -> int:
    """Tokens of a context that holds `cell`: each sequence has as many of its own, or all share them."""
    tokens = cell.context_tokens + cell.output_tokens
    return padded(cell.batch_size * tokens) if unified else cell.batch_size * padded(tokens)


def padded(tokens: int) -> int:
    """`tokens` as llama.cpp rounds them up."""
    return -(-tokens // PAD_TOKENS) * PAD_TOKENS
