"""Attention by xFormers' memory-efficient operator, for Transformers' attention interface, which does not know it.

A generated snippet prints the functions as they stand here, so they use nothing but torch, transformers and xformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask


def make_attention(operator: Callable[..., torch.Tensor], causal_bias: Callable[[], Any]) -> Callable[..., Any]:
    """An attention function around `operator`, which takes tensors of shape (batch, tokens, heads, head size)."""

    def attention(
        _: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **__: Any,
    ) -> tuple[torch.Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        states = [one.repeat_interleave(groups, dim=1).transpose(1, 2) for one in (key, value)]
        bias: Any = None
        if attention_mask is not None:
            bias = as_bias(attention_mask, query, key.shape[2])
        elif query.shape[2] > 1:
            bias = causal_bias()
        return operator(query.transpose(1, 2), *states, attn_bias=bias, scale=scaling), None

    return attention


def as_bias(mask: torch.Tensor, query: torch.Tensor, keys: int) -> torch.Tensor:
    """An additive mask of shape (batch, heads, queries, keys), in rows of a multiple of 8, as the operator wants."""
    rows, heads, queries, _ = query.shape
    padded = torch.zeros(rows, heads, queries, -(-keys // 8) * 8, dtype=query.dtype, device=query.device)
    bias = padded[..., :keys]
    if mask.dtype == torch.bool:
        return bias.masked_fill_(~mask[..., :keys], float("-inf"))
    return bias.add_(mask[..., :keys])


def register() -> None:
    """Make `attn_implementation="xformers"` known."""
    from xformers.ops import LowerTriangularMask, memory_efficient_attention

    AttentionInterface.register("xformers", make_attention(memory_efficient_attention, LowerTriangularMask))
    AttentionMaskInterface.register("xformers", sdpa_mask)
