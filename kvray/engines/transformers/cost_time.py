"""Seconds of a prefill and of a decode step in Transformers: the model's work over rates measured on the device.

To the roofline comes what neither multiplying nor reading hides: copies of the cache, scores written to memory,
element-wise operations, the library's own time per layer. Passes over memory are counted from the code of Transformers'
decoder layers and caches, reads and writes alike; none is fitted.
"""

from __future__ import annotations

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, CompileMode, DeviceType
from kvray.engines.transformers.cost_memory import (
    WITH_SCORES,
    chunk_tokens,
    device_weight_bytes,
    expanded_elements,
    held_tokens,
    is_masked_at_decode,
    repeats_keys,
    scores_bytes,
    stored_bytes_per_element,
)
from kvray.forecast.hardware import Hardware
from kvray.forecast.memory import ITEM_BYTES, weight_bytes
from kvray.forecast.roofline import attention_flops, prompt_flops, read_weight_bytes, roofline_s, step_flops
from kvray.forecast.shape import LayerShape, ModelShape
from kvray.workload import Cell

_HIDDEN_PASSES = 24
"""Over the residual stream in a layer: two norms (8 each, in float32), two additions (3 each), rotation (2)."""
_INNER_PASSES = 7
"""Over the MLP's inner activation: gate and up written, activated (2), multiplied (3)."""
_SCORE_PASSES = {AttentionBackend.EAGER: 9, AttentionBackend.SDPA_MATH: 5}
"""Over the scores: written, scaled (2), masked (2), softmax (2), its copy (1, eager only), read by the values (1)."""
_GROW_PASSES = 2
"""Over a cache that grows by concatenation at every token: read and written."""
_WINDOW_PASSES = 4
"""The same for one that is cut down again after it was put together."""
_UNPACK_PASSES = 8
"""Over a quantised cache in the model's dtype: made floats, less zero point, times scale (2 each), concatenated."""
_PACK_PASSES = 8
_EXPAND_PASSES = 2
"""Over keys and values that are expanded from latents: written, and read by what comes next."""
_GATHER_PASSES = 2
"""Over the pages that are read into one tensor."""


def prefill_s(shape: ModelShape, candidate: Candidate, cell: Cell, hardware: Hardware) -> float | None:
    """Seconds until the first token of `cell`; `None` where the dtype's rates are not known."""
    chunk = chunk_tokens(candidate, cell)
    chunks = -(-cell.context_tokens // chunk)
    weights = chunks * read_weight_bytes(shape, candidate.dtype, tokens=chunk * cell.batch_size)
    flops = prefill_flops(shape, candidate, cell)
    work = roofline_s(flops=flops, read_bytes=weights, dtype=candidate.dtype, hardware=hardware)
    if work is None:
        return None
    copied = _prefill_copied_bytes(shape, candidate, cell, hardware.device) / hardware.copy_bytes_s
    return work + copied + chunks * (_own_s(shape, hardware) + _fetch_s(shape, candidate, hardware))


def prefill_flops(shape: ModelShape, candidate: Candidate, cell: Cell) -> float:
    """Floating-point operations of reading the prompts of `cell`: those with the parameters, and attention's, of which
    a kernel that knows of causality leaves half out."""
    # The parameters count the expansion of each token once; every further piece of a prompt expands all before it.
    tokens, pieces = cell.batch_size * cell.context_tokens, -(-cell.context_tokens // chunk_tokens(candidate, cell))
    again = sum(_expansion_flops(shape, layer) for layer in shape.layers) * tokens * (pieces - 1) / 2
    attention = sum(
        attention_flops(shape, layer, cell, is_whole=candidate.attention in WITH_SCORES or layer.window is not None)
        for layer in shape.layers
    )
    return prompt_flops(shape, cell) + again + attention


def decode_step_s(shape: ModelShape, candidate: Candidate, cell: Cell, hardware: Hardware) -> float | None:
    """Seconds of one decode step (a token for every sequence), in the middle of the answer; `None` as above."""
    weights = read_weight_bytes(shape, candidate.dtype, tokens=cell.batch_size)
    expanded = sum(
        cell.batch_size * _needed_tokens(layer, candidate, cell) * _expansion_flops(shape, layer)
        for layer in shape.layers
    )
    flops = step_flops(shape, cell) + expanded
    work = roofline_s(flops=flops, read_bytes=weights, dtype=candidate.dtype, hardware=hardware)
    if work is None:
        return None
    cache = sum(_step_bytes(shape, layer, candidate, cell) for layer in shape.layers) / hardware.copy_bytes_s
    own = 0.0 if candidate.compile is not CompileMode.OFF else _own_s(shape, hardware)
    return work + cache + own + _fetch_s(shape, candidate, hardware) + _offload_s(shape, candidate, cell, hardware)


def least_read_bytes(shape: ModelShape, candidate: Candidate, cell: Cell) -> float:
    """Bytes that a decode step must read at least: each weight that is multiplied and each held key and value once, as
    they are stored."""
    per_element = stored_bytes_per_element(candidate)
    cache = sum(
        layer.kv_elements * per_element * _needed_tokens(layer, candidate, cell)
        + layer.state_elements * ITEM_BYTES[candidate.dtype]
        for layer in shape.layers
    )
    return read_weight_bytes(shape, candidate.dtype, tokens=cell.batch_size) + cell.batch_size * cache


def _needed_tokens(layer: LayerShape, candidate: Candidate, cell: Cell) -> int:
    """Tokens with content in the middle of the answer: of a static cache not the room that is still empty."""
    fed = cell.context_tokens + cell.output_tokens // 2
    return min(fed, held_tokens(layer, candidate, cell, fed))


def _expansion_flops(shape: ModelShape, layer: LayerShape) -> float:
    """FLOPs of computing every head's key and value of one token from its latent."""
    if not layer.is_latent:
        return 0.0
    unrotated = layer.expanded_key_dim - layer.value_dim
    return 2.0 * layer.key_dim * shape.heads * (unrotated + layer.expanded_value_dim)


def _prefill_copied_bytes(shape: ModelShape, candidate: Candidate, cell: Cell, device: DeviceType) -> float:
    item, tokens = ITEM_BYTES[candidate.dtype], cell.batch_size * cell.context_tokens
    per_token = _HIDDEN_PASSES * shape.hidden + _INNER_PASSES * shape.intermediate
    copied = float(len(shape.layers) * tokens * per_token * item)
    if candidate.attention in WITH_SCORES:
        with_keys = sum(1 for layer in shape.layers if layer.kv_elements)
        chunks = -(-cell.context_tokens // chunk_tokens(candidate, cell))
        one_pass = chunks * scores_bytes(shape, candidate, cell, device) / 2
        copied += with_keys * one_pass * _SCORE_PASSES[candidate.attention]
    if candidate.cache is CacheStrategy.QUANTIZED:
        copied += _PACK_PASSES * tokens * shape.kv_elements_per_token * item
    return copied


def _step_bytes(shape: ModelShape, layer: LayerShape, candidate: Candidate, cell: Cell) -> float:
    """Bytes moved in one layer for its cache in one step, attention's own reading included."""
    item = ITEM_BYTES[candidate.dtype]
    tokens = held_tokens(layer, candidate, cell, cell.context_tokens + cell.output_tokens // 2)
    kept = cell.batch_size * layer.kv_elements * tokens * item
    state = 2 * cell.batch_size * layer.state_elements * item
    expanded = _EXPAND_PASSES * cell.batch_size * tokens * expanded_elements(shape, layer) * item
    return state + expanded + kept * (_upkeep_passes(candidate, layer) + _attention_passes(shape, layer, candidate))


def _upkeep_passes(candidate: Candidate, layer: LayerShape) -> float:
    match candidate.cache:
        case CacheStrategy.STATIC | CacheStrategy.OFFLOADED_STATIC:
            return 0.0
        case CacheStrategy.QUANTIZED:
            return _UNPACK_PASSES
        case CacheStrategy.SLIDING_WINDOW:
            return _WINDOW_PASSES
        case CacheStrategy.PAGED:
            return _GATHER_PASSES
    return _GROW_PASSES if layer.window is None else _WINDOW_PASSES


def _attention_passes(shape: ModelShape, layer: LayerShape, candidate: Candidate) -> float:
    """One, to read keys and values; where they are written out for each head of the query, these are read again."""
    if not layer.kv_heads:
        return 0.0
    repeats = repeats_keys(candidate, shape, layer, masked=is_masked_at_decode(candidate))
    return 1 + 2 * shape.heads / layer.kv_heads if repeats else 1.0


def _own_s(shape: ModelShape, hardware: Hardware) -> float:
    return hardware.step_s + len(shape.layers) * hardware.layer_s


def _fetch_s(shape: ModelShape, candidate: Candidate, hardware: Hardware) -> float:
    """Weights that wait in host memory come over for every pass through the model."""
    waiting = weight_bytes(shape, candidate.dtype) - device_weight_bytes(shape, candidate)
    return waiting / hardware.to_device_bytes_s if waiting and hardware.to_device_bytes_s else 0.0


def _offload_s(shape: ModelShape, candidate: Candidate, cell: Cell, hardware: Hardware) -> float:
    """An offloaded cache comes over for every step; one that grows goes back as well, for it is a new tensor then."""
    if candidate.cache not in (CacheStrategy.OFFLOADED, CacheStrategy.OFFLOADED_STATIC):
        return 0.0
    if hardware.to_device_bytes_s is None:
        return 0.0
    fed = cell.context_tokens + cell.output_tokens // 2
    kept = sum(layer.kv_elements * held_tokens(layer, candidate, cell, fed) for layer in shape.layers)
    ways = 2 if candidate.cache is CacheStrategy.OFFLOADED else 1
    return ways * cell.batch_size * kept * ITEM_BYTES[candidate.dtype] / hardware.to_device_bytes_s
