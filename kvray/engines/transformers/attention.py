"""Forcing an SDPA kernel, and telling from the names in a profiler trace which attention ran."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from contextlib import AbstractContextManager

from kvray.candidate import AttentionBackend

_OPERATORS = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": AttentionBackend.SDPA_FLASH,
    "aten::_scaled_dot_product_flash_attention": AttentionBackend.SDPA_FLASH,
    "aten::_scaled_dot_product_efficient_attention": AttentionBackend.SDPA_EFFICIENT,
    "aten::_scaled_dot_product_cudnn_attention": AttentionBackend.SDPA_CUDNN,
    "aten::_scaled_dot_product_attention_math": AttentionBackend.SDPA_MATH,
}
"""What `scaled_dot_product_attention` dispatches to, by the operator's name in a profiler trace."""
_DEVICE_KERNELS = (
    ("pytorch_flash::", AttentionBackend.SDPA_FLASH),
    ("FlashAttnFwdSm90", AttentionBackend.FLASH_ATTENTION_3),
    ("flash::flash_fwd", AttentionBackend.FLASH_ATTENTION_2),
    ("xformers", AttentionBackend.XFORMERS),
    ("fmha_cutlassF", AttentionBackend.SDPA_EFFICIENT),
    ("native_sdpa", AttentionBackend.SDPA_CUDNN),
    ("flex_attention", AttentionBackend.FLEX_ATTENTION),
)
"""Parts of the names of operators and CUDA kernels; the first that fits counts. For what has no SDPA operator, and for
CUDA graphs, whose replay shows device kernels only."""
EAGER_KERNEL = "eager"
"""Stands for attention written out as matmul, softmax, matmul: no SDPA operator in the trace."""
COMPILED_KERNEL = "compiled"
"""Stands for attention that the compiler wrote itself: no attention operator, but compiled code in the trace."""
_COMPILED_CODE = ("## Call CompiledFxGraph", "Torch-Compiled Region", "triton_")


def forced_kernel(sdpa_kernel: str | None) -> AbstractContextManager[object]:
    """A context in which SDPA may only use the kernel called `sdpa_kernel` (a member of `SDPBackend`)."""
    if sdpa_kernel is None:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend
    from torch.nn.attention import sdpa_kernel as allow_only

    context: AbstractContextManager[object] = allow_only([getattr(SDPBackend, sdpa_kernel)])
    return context


def kernels_seen(names: Iterable[str]) -> tuple[str, ...]:
    """The attention kernels among a trace's names, as candidate values, else `eager` or `compiled` (see there).

    Empty where nothing in the trace says what ran.
    """
    known = set(names)
    seen = {backend.value for operator, backend in _OPERATORS.items() if operator in known}
    seen = seen or {backend.value for name in known if (backend := _device_kernel(name)) is not None}
    if seen:
        return tuple(sorted(seen))
    if "aten::softmax" in known:
        return (EAGER_KERNEL,)
    return (COMPILED_KERNEL,) if any(name.startswith(_COMPILED_CODE) for name in known) else ()


def kernel_substitution(asked: AttentionBackend, phase: str, seen: tuple[str, ...]) -> str | None:
    """A sentence when `seen` does not prove what `asked` demands, else `None`. `sdpa` accepts any SDPA kernel."""
    ran = " + ".join(seen)
    if asked is AttentionBackend.SDPA:
        return f"asked for SDPA, {phase} ran eager attention" if EAGER_KERNEL in seen else None
    if not seen:
        return f"asked for {asked}, nothing in {phase} showed that it ran"
    if seen == (asked.value,) or (seen == (COMPILED_KERNEL,) and asked in _WRITTEN_BY_THE_COMPILER):
        return None
    if asked is AttentionBackend.HUB_KERNEL:
        replaced = {EAGER_KERNEL, *(backend.value for backend in _OPERATORS.values())} & set(seen)
        return f"asked for a kernel from a hub, {phase} ran {ran}" if replaced else None
    return f"asked for {asked}, {phase} ran {ran}"


_WRITTEN_BY_THE_COMPILER = (AttentionBackend.EAGER, AttentionBackend.SDPA_MATH, AttentionBackend.FLEX_ATTENTION)
"""Attention made of plain operators, which `torch.compile` fuses with their surroundings."""


def _device_kernel(name: str) -> AttentionBackend | None:
    return next((backend for part, backend in _DEVICE_KERNELS if part in name), None)
