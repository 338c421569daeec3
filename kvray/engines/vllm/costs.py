"""`VllmCosts`: what a candidate costs in vLLM, for forecasts. Imports no library of the engine.

The pool of blocks is counted as vLLM makes it: whole blocks, types of keys and values with their scales, layers in
groups. Time is the roofline with passes over memory counted from vLLM's kernels; nothing is fitted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from typing_extensions import override

from kvray.candidate import Candidate, CompileMode, DeviceType
from kvray.engines.vllm.arguments import SERVER_CHUNK_TOKENS, block_tokens, pool_blocks
from kvray.engines.vllm.description import cache_groups
from kvray.forecast.cost_model import CostModel
from kvray.forecast.hardware import Hardware
from kvray.forecast.memory import ITEM_BYTES, MemoryNeed, weight_bytes
from kvray.forecast.roofline import attention_flops, prompt_flops, read_weight_bytes, roofline_s, step_flops
from kvray.forecast.shape import LayerShape, ModelShape
from kvray.workload import Cell

_SCALE_BYTES = 4
"""Bytes of the scale of each key and value of a head, where these have one each."""
_EIGHT_BIT, _FOUR_BIT = 1.0, 0.5
_ELEMENT_BYTES = {
    **dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e5m2", "int8_per_token_head", "fp8_per_token_head"), _EIGHT_BIT),
    "int4_per_token_head": _FOUR_BIT,
    "nvfp4": _FOUR_BIT + 1 / 16,  # sixteen share a scale of 8 bits
}
"""Bytes of a kept element by `kv_cache_dtype`; of any other, those of the model's dtype. Source: `KVQuantMode`."""
_LOGIT_BYTES = 4
_HIDDEN_ALIVE, _INNER_ALIVE = 4, 3
"""Tensors of a token as wide as the residual stream, and as the MLP, that are alive together."""
_HIDDEN_PASSES = 10
"""Over the residual stream in a layer: two norms that add it (4 each), rotation in place (2)."""
_INNER_PASSES = 5
"""Over the MLP's inner activation: gate and up written, both read, the product written."""


class VllmCosts(CostModel):
    """The costs of a model of `shape`.

    Args:
        kinds: `ModelInfo.layer_kinds`.
    """

    def __init__(self, shape: ModelShape, kinds: Sequence[str]) -> None:
        self._shape = shape
        self._kinds = tuple(kinds)

    @override
    def memory(self, candidate: Candidate, cell: Cell, device: DeviceType) -> MemoryNeed:
        item = ITEM_BYTES[candidate.dtype]
        tokens = min(_chunk_tokens(candidate, cell), cell.batch_size * cell.context_tokens)
        activations = tokens * (_HIDDEN_ALIVE * self._shape.hidden + _INNER_ALIVE * self._shape.intermediate) * item
        return MemoryNeed(
            weights=weight_bytes(self._shape, candidate.dtype),
            cache=self._pool_bytes(candidate, cell, device),
            transient=activations + cell.batch_size * self._shape.vocab * (item + _LOGIT_BYTES),
        )

    @override
    def prefill_s(self, candidate: Candidate, cell: Cell, hardware: Hardware) -> float | None:
        tokens, chunk = cell.batch_size * cell.context_tokens, _chunk_tokens(candidate, cell)
        steps = -(-tokens // chunk)
        attention = sum(attention_flops(self._shape, layer, cell, is_whole=False) for layer in self._shape.layers)
        read = read_weight_bytes(self._shape, candidate.dtype, tokens=min(tokens, chunk))
        gpus = _gpus(candidate, hardware)
        work = roofline_s(
            flops=prompt_flops(self._shape, cell) + attention,
            read_bytes=steps * read,
            dtype=candidate.dtype,
            hardware=hardware,
            gpus=gpus,
        )
        if work is None:
            return None
        per_token = _HIDDEN_PASSES * self._shape.hidden + _INNER_PASSES * self._shape.intermediate
        passed = len(self._shape.layers) * tokens * per_token * ITEM_BYTES[candidate.dtype]
        return work + passed / hardware.copy_bytes_s / gpus + steps * self._own_s(candidate, hardware)

    @override
    def decode_step_s(self, candidate: Candidate, cell: Cell, hardware: Hardware) -> float | None:
        gpus = _gpus(candidate, hardware)
        work = roofline_s(
            flops=step_flops(self._shape, cell),
            read_bytes=read_weight_bytes(self._shape, candidate.dtype, tokens=cell.batch_size),
            dtype=candidate.dtype,
            hardware=hardware,
            gpus=gpus,
        )
        if work is None:
            return None
        attended = self._attended_bytes(candidate, cell) / hardware.copy_bytes_s / gpus
        return work + attended + self._own_s(candidate, hardware)

    @override
    def least_read_bytes(self, candidate: Candidate, cell: Cell) -> float:
        weights = read_weight_bytes(self._shape, candidate.dtype, tokens=cell.batch_size)
        return weights + self._attended_bytes(candidate, cell)

    def _pool_bytes(self, candidate: Candidate, cell: Cell, device: DeviceType) -> int:
        """Bytes of the blocks that hold `cell`, and of the states that layers keep beside them, on all GPUs together.
        Each GPU keeps one head at least."""
        groups = cache_groups(self._kinds)
        tokens = pool_blocks(candidate, device, [cell], groups=groups) * block_tokens(candidate, device)
        layers = [_token_bytes(layer, candidate) for layer in self._shape.layers]
        # A block of any group lies in the same memory, so it is as large as the largest of them.
        in_block = sum(layers) if groups == 1 else min(Counter(self._kinds).values()) * max(layers)
        heads = max((layer.kv_heads for layer in self._shape.layers), default=0) or 1
        copies = max(1.0, candidate.parallelism / heads)
        states = sum(layer.state_elements for layer in self._shape.layers) * ITEM_BYTES[candidate.dtype]
        return round(copies * tokens * in_block + cell.batch_size * states)

    def _attended_bytes(self, candidate: Candidate, cell: Cell) -> float:
        """Bytes of keys, values and states that a step reads in the middle of the answer."""
        fed = cell.context_tokens + cell.output_tokens // 2
        each = sum(
            _token_bytes(layer, candidate) * min(fed, layer.window or fed)
            + layer.state_elements * ITEM_BYTES[candidate.dtype]
            for layer in self._shape.layers
        )
        return cell.batch_size * each

    def _own_s(self, candidate: Candidate, hardware: Hardware) -> float:
        """What is neither multiplying nor reading. Where the model is compiled, its layers are one call."""
        layers = len(self._shape.layers) if candidate.compile is CompileMode.OFF else 0
        return hardware.step_s + layers * hardware.layer_s


def _token_bytes(layer: LayerShape, candidate: Candidate) -> float:
    """Bytes that a layer keeps of one token."""
    named = str(candidate.setting("kv_cache_dtype") or "auto")
    per_element = _ELEMENT_BYTES.get(named, ITEM_BYTES[candidate.dtype])
    scales = 2 * layer.kv_heads * _SCALE_BYTES if named.endswith("_per_token_head") else 0
    return layer.kv_elements * per_element + scales


def _chunk_tokens(candidate: Candidate, cell: Cell) -> int:
    """Tokens that are worked on at once: all prompts where they may not be cut."""
    if candidate.setting("enable_chunked_prefill") is False:
        return max(1, cell.batch_size * cell.context_tokens)
    return int(candidate.setting("max_num_batched_tokens") or SERVER_CHUNK_TOKENS)


def _gpus(candidate: Candidate, hardware: Hardware) -> int:
    """That share the work. What they tell each other is not forecast; processes on a CPU share one machine."""
    return 1 if hardware.device is DeviceType.CPU else candidate.parallelism
