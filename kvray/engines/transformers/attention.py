"""Forcing an SDPA kernel, and telling from operator names which attention ran."""

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
EAGER_KERNEL = "eager"
"""Stands for attention written out as matmul, softmax, matmul: no SDPA operator in the trace."""


def forced_kernel(sdpa_kernel: str | None) -> AbstractContextManager[object]:
    """A context in which SDPA may only use the kernel called `sdpa_kernel` (a member of `SDPBackend`)."""
    if sdpa_kernel is None:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend
    from torch.nn.attention import sdpa_kernel as allow_only

    context: AbstractContextManager[object] = allow_only([getattr(SDPBackend, sdpa_kernel)])
    return context


def kernels_seen(operator_names: Iterable[str]) -> tuple[str, ...]:
    """The attention kernels among a trace's operators, as candidate values; `eager` when softmax ran without SDPA."""
    names = set(operator_names)
    seen = sorted({backend.value for operator, backend in _OPERATORS.items() if operator in names})
    if not seen and "aten::softmax" in names:
        return (EAGER_KERNEL,)
    return tuple(seen)


def kernel_substitution(asked: AttentionBackend, phase: str, seen: tuple[str, ...]) -> str | None:
    """A sentence when `seen` is not what `asked` demands, else `None`. `sdpa` accepts any SDPA kernel."""
    if not seen:
        return None
    ran = " + ".join(seen)
    if asked is AttentionBackend.SDPA:
        return f"asked for SDPA, {phase} ran eager attention" if EAGER_KERNEL in seen else None
    if seen != (asked.value,):
        return f"asked for {asked}, {phase} ran {ran}"
    return None
