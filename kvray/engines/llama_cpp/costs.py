"""`LlamaCppCosts`: what a candidate costs in llama.cpp, for forecasts. Imports no library of the engine.

Sizes of caches are llama.cpp's own arithmetic: tokens rounded up, layers with a window kept shorter, types in blocks.
What is alive beside them is counted from its graphs as they are computed; nothing is fitted.
"""

from __future__ import annotations

from dataclasses import replace

from typing_extensions import override

from kvray.candidate import Candidate, DeviceType, DType
from kvray.engines.llama_cpp.settings import (
    ALL_LAYERS,
    PAD_TOKENS,
    PLAIN_TYPES,
    ContextSettings,
    context_settings,
    padded,
)
from kvray.engines.llama_cpp.sizes import NativeSizes, Sizes
from kvray.forecast.cost_model import CostModel
from kvray.forecast.hardware import Hardware
from kvray.forecast.memory import MIB, MemoryNeed
from kvray.forecast.roofline import attention_flops, prompt_flops, roofline_s, step_flops
from kvray.forecast.shape import LayerShape, ModelShape
from kvray.workload import Cell

TYPE_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    **{name: size / 32 for name, size in (("q8_0", 34), ("q4_0", 18), ("q4_1", 20), ("iq4_nl", 18))},
    **{name: size / 32 for name, size in (("q5_0", 22), ("q5_1", 24))},
}
"""Bytes of a cached element: blocks have 32 of them. Source: `type_traits` of ggml."""
_FLOAT_BYTES = 4
_MOST_SIMULATED = 1 << 22
"""Tokens."""
_ROUNDED_MIB = 0.01
"""The log rounds keys and values to hundredths."""
_SCORE_PASSES = 5
"""Over the scores without flash attention: written, masked and softmax in one (2), read by the values, copied (1)."""
_HIDDEN_ALIVE, _INNER_ALIVE = 4, 3
"""Tensors of a token as wide as the residual stream, and as the MLP, that are alive together."""
_UNPACK = 2.0
"""How much longer attention takes over keys and values in blocks, which are unpacked for every query."""


class LlamaCppCosts(CostModel):
    """The costs of a model.

    Args:
        weight_bytes: of all weights as the file has them.
        threads: with which a candidate computes that sets none.
        native: llama.cpp's own arithmetic, where it can be had; the formulas stand for it elsewhere.
    """

    def __init__(
        self, shape: ModelShape, *, weight_bytes: int, threads: int, native: NativeSizes | None = None
    ) -> None:
        self._shape = shape
        self._weight_bytes = weight_bytes
        self._threads = threads
        self._native = native

    @override
    def memory(self, candidate: Candidate, cell: Cell, device: DeviceType) -> MemoryNeed:
        settings = self._settings(candidate, cell, device)
        sizes = self._simulated(settings)
        cache = _closer_cache(cache_bytes(self._shape, settings), sizes)
        transient = _transient_bytes(self._shape, settings, cell)
        if device is DeviceType.CUDA:
            on_gpu = self._share_on_gpu(settings)
            return MemoryNeed(
                weights=round(on_gpu * (self._weight_bytes - self._experts_on_host(settings))),
                cache=round(on_gpu * cache) if settings.offload_kqv else 0,
                transient=transient if sizes is None or not sizes.gpu_mib else round(sizes.gpu_mib * MIB),
            )
        weights = sizes or self._simulated(replace(settings, n_ctx=PAD_TOKENS * settings.n_seq_max))
        copied, used = (0, 0) if weights is None else (weights.copied_bytes, weights.used_bytes)
        # Of the buffers that graphs are computed in only what was written is resident.
        return MemoryNeed(
            weights=self._weight_bytes + used,
            cache=cache,
            transient=transient if sizes is None else min(transient, round(sizes.host_mib * MIB)),
            droppable=copied - used,
        )

    @override
    def prefill_s(self, candidate: Candidate, cell: Cell, hardware: Hardware) -> float | None:
        settings = self._settings(candidate, cell, hardware.device)
        tokens = cell.batch_size * cell.context_tokens
        pieces = -(-tokens // settings.n_ubatch)
        is_whole = not settings.flash_attention
        attention = sum(attention_flops(self._shape, layer, cell, is_whole=is_whole) for layer in self._shape.layers)
        slowed = _UNPACK if _has_blocks(settings) else 1.0
        work = roofline_s(
            flops=prompt_flops(self._shape, cell) + slowed * attention,
            read_bytes=pieces * self._read_bytes(tokens=min(tokens, settings.n_ubatch)),
            dtype=DType.FLOAT32,
            hardware=hardware,
        )
        if work is None:
            return None
        scores = 0.0
        if not settings.flash_attention:
            pairs = tokens * cell.context_tokens / 2
            scores = _SCORE_PASSES * len(self._shape.layers) * self._shape.heads * pairs * _FLOAT_BYTES
        own = pieces * len(self._shape.layers) * hardware.layer_s
        return self._slower(settings.threads_batch, hardware) * (work + scores / hardware.copy_bytes_s) + own

    @override
    def decode_step_s(self, candidate: Candidate, cell: Cell, hardware: Hardware) -> float | None:
        settings = self._settings(candidate, cell, hardware.device)
        work = roofline_s(
            flops=step_flops(self._shape, cell),
            read_bytes=self._read_bytes(tokens=cell.batch_size),
            dtype=DType.FLOAT32,
            hardware=hardware,
        )
        if work is None:
            return None
        slowed = _UNPACK if _has_blocks(settings) else 1.0
        cache = slowed * _attended_bytes(self._shape, settings, cell) / hardware.copy_bytes_s
        own = len(self._shape.layers) * hardware.layer_s + hardware.step_s
        return self._slower(settings.threads, hardware) * (work + cache) + own

    @override
    def least_read_bytes(self, candidate: Candidate, cell: Cell) -> float:
        settings = self._settings(candidate, cell, DeviceType.CPU)
        return self._read_bytes(tokens=cell.batch_size) + _attended_bytes(self._shape, settings, cell)

    def _simulated(self, settings: ContextSettings) -> Sizes | None:
        """What llama.cpp says; of contexts that no machine holds it is not asked."""
        if self._native is None or settings.n_ctx > _MOST_SIMULATED:
            return None
        return self._native.sizes(settings)

    def _settings(self, candidate: Candidate, cell: Cell, device: DeviceType) -> ContextSettings:
        return context_settings(candidate, cell, device=device, threads=self._threads)

    def _read_bytes(self, *, tokens: int) -> float:
        """Bytes of the weights that are read to work on `tokens` at once."""
        share = self._shape.multiplied_parameters(tokens=tokens) / self._shape.total_parameters
        return share * self._weight_bytes

    def _share_on_gpu(self, settings: ContextSettings) -> float:
        """Share of the layers; llama.cpp counts what comes after the last one as a layer."""
        if settings.n_gpu_layers == ALL_LAYERS:
            return 1.0
        return min(1.0, settings.n_gpu_layers / (len(self._shape.layers) + 1))

    def _experts_on_host(self, settings: ContextSettings) -> float:
        """Bytes of the experts that stay in host memory."""
        experts = self._shape.expert_parameters / self._shape.total_parameters * self._weight_bytes
        return experts * min(1.0, settings.n_cpu_moe / len(self._shape.layers))

    def _slower(self, threads: int, hardware: Hardware) -> float:
        """How much longer it takes with fewer threads than the device was measured with; more make nothing faster."""
        return 1.0 if hardware.device is DeviceType.CUDA else max(1.0, self._threads / threads)


def _closer_cache(counted: int, sizes: Sizes | None) -> int:
    """`counted`, unless llama.cpp says another size than a rounded one of it."""
    if sizes is None or not sizes.cache_parts:
        return counted
    rounding = 2 * sizes.cache_parts * _ROUNDED_MIB
    return counted if abs(counted / MIB - sizes.cache_mib) <= rounding else round(sizes.cache_mib * MIB)


def cache_bytes(shape: ModelShape, settings: ContextSettings) -> int:
    """Bytes of the buffers for keys and values, as llama.cpp makes them."""
    return round(sum(_layer_bytes(layer, settings, _cells(layer, settings)) for layer in shape.layers))


def _cells(layer: LayerShape, settings: ContextSettings) -> int:
    """Tokens for which a layer has room, of all sequences together. Source: `llama_kv_cache_iswa`."""
    streams = 1 if settings.kv_unified else settings.n_seq_max
    each = settings.n_ctx // streams
    if layer.window is None or settings.swa_full:
        return streams * each
    sharing = settings.n_seq_max if settings.kv_unified else 1
    return streams * padded(min(each, layer.window * sharing + settings.n_ubatch))


def _layer_bytes(layer: LayerShape, settings: ContextSettings, tokens: float) -> float:
    keys = layer.key_dim * TYPE_BYTES[settings.type_k]
    return tokens * layer.kv_heads * (keys + layer.value_dim * TYPE_BYTES[settings.type_v])


def _attended_bytes(shape: ModelShape, settings: ContextSettings, cell: Cell) -> float:
    """Bytes of keys and values that a step reads in the middle of the answer: whole steps of rounded tokens."""
    fed = cell.context_tokens + cell.output_tokens // 2
    return sum(
        _layer_bytes(layer, settings, min(cell.batch_size * padded(fed), _cells(layer, settings)))
        for layer in shape.layers
    )


def _transient_bytes(shape: ModelShape, settings: ContextSettings, cell: Cell) -> int:
    """While a piece of a prompt is worked on: activations, a mask, scores without flash attention; and all logits."""
    tokens = min(settings.n_ubatch, cell.batch_size * cell.context_tokens)
    attended = settings.n_ctx if settings.kv_unified else settings.n_ctx // settings.n_seq_max
    activations = tokens * (_HIDDEN_ALIVE * shape.hidden + _INNER_ALIVE * shape.intermediate) * _FLOAT_BYTES
    mask = tokens * attended * _FLOAT_BYTES
    scores = 0 if settings.flash_attention else 2 * shape.heads * tokens * attended * _FLOAT_BYTES
    logits = 2 * settings.n_seq_max * shape.vocab * _FLOAT_BYTES
    return activations + mask + scores + logits


def _has_blocks(settings: ContextSettings) -> bool:
    return not {settings.type_k, settings.type_v} <= set(PLAIN_TYPES)
