"""Bytes that Transformers needs for a candidate and cell: weights, cache, and what is alive beside them at the peak.

Sizes of caches are those of `transformers.cache_utils`' layers (a test holds them against the real objects). What is
alive at the peak is counted from the code of a Llama-like decoder layer as `generate` runs it; nothing is fitted.
`benchmarks/forecast.py` holds it against what PyTorch's allocator gave out.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType
from kvray.engines.transformers.arguments import Split, split_of
from kvray.forecast.memory import ITEM_BYTES, MIB, MemoryNeed, kv_bytes, weight_bytes
from kvray.forecast.shape import LayerShape, ModelShape
from kvray.workload import Cell

WITH_SCORES = (AttentionBackend.EAGER, AttentionBackend.SDPA_MATH)
"""Attention that writes its whole matrix of scores to memory."""
PAGE_TOKENS = 256
"""Tokens of a page of the paged cache, as the engine sets it."""
_SPARE_PAGES = 1
"""Pages that the engine asks for beyond the cell's."""
_PADDING_SECTORS = 2
_FLOAT_BYTES = 4
_RESIDENT_LAYERS = 2
"""Layers of an offloaded cache on the device: the one at work, and the next one on its way."""
_GROUP_TOKENS, _RESIDUAL_TOKENS = 64, 128
"""`q_group_size` and `residual_length` of `QuantizedCache` where nothing is set."""
_PACKED_BYTES = {1: 1 / 8, 2: 1 / 4, 3: 4 / 10, 4: 1 / 2, 8: 1.0}
"""Per element and width: three bits go ten to an `int32`. Source: `Quantizer.bit_to_packing` of hqq."""


def memory_need(shape: ModelShape, candidate: Candidate, cell: Cell, device: DeviceType) -> MemoryNeed:
    """What `candidate` needs on `device` for `cell`."""
    gpus, part = candidate.parallelism, part_of(shape, candidate)
    transient = max(_prefill_bytes(part, candidate, cell, device), _decode_bytes(part, candidate, cell))
    weights = device_weight_bytes(shape, candidate)
    if split_of(candidate) is None:
        cache = device_cache_bytes(shape, candidate, cell)
        return MemoryNeed(weights=weights, cache=cache, transient=transient + _weights_on_the_way(shape, candidate))
    # With tp each GPU holds its heads of the cache, all of a latent; with device_map the cache of its layers.
    is_tp = split_of(candidate) is Split.TP
    cache = gpus * device_cache_bytes(part, candidate, cell) if is_tp else device_cache_bytes(shape, candidate, cell)
    beyond = 0 if is_tp else round(_uneven_share(len(shape.layers), gpus) * (weights + cache))
    return MemoryNeed(weights=weights, cache=cache, transient=0, on_each_gpu=transient + beyond)


def part_of(shape: ModelShape, candidate: Candidate) -> ModelShape:
    """What one GPU works on while a layer runs: with tensor parallelism its share of the heads, of the MLP and of the
    weights, otherwise the whole layer."""
    gpus = candidate.parallelism
    if split_of(candidate) is not Split.TP:
        return shape
    return replace(
        shape,
        total_parameters=shape.total_parameters // gpus,
        lookup_parameters=shape.lookup_parameters // gpus,
        expert_parameters=shape.expert_parameters // gpus,
        intermediate=shape.intermediate // gpus,
        heads=max(1, shape.heads // gpus),
        layers=tuple(
            layer if layer.is_latent or not layer.kv_heads else replace(layer, kv_heads=max(1, layer.kv_heads // gpus))
            for layer in shape.layers
        ),
    )


def _uneven_share(layers: int, gpus: int) -> float:
    """How much more of all layers the fullest GPU has than an even share."""
    return -(-layers // gpus) / layers - 1 / gpus if layers else 0.0


def device_weight_bytes(shape: ModelShape, candidate: Candidate) -> int:
    """Bytes of the weights that stay on the device: all, or what the limit lets in."""
    total = weight_bytes(shape, candidate.dtype)
    limit = candidate.weights_limit_mib
    return total if limit is None else min(total, limit * MIB)


def cache_bytes(shape: ModelShape, candidate: Candidate, cell: Cell) -> int:
    """Bytes of the cache at the end of `cell`, wherever it is. The last token is not fed back, so it is never held."""
    if candidate.cache is CacheStrategy.PAGED:
        return _paged_bytes(shape, candidate, cell)
    return sum(_layer_bytes(layer, candidate, cell) for layer in shape.layers)


def device_cache_bytes(shape: ModelShape, candidate: Candidate, cell: Cell) -> int:
    """Bytes of the part of the cache that is on the device."""
    total = cache_bytes(shape, candidate, cell)
    if candidate.cache not in (CacheStrategy.OFFLOADED, CacheStrategy.OFFLOADED_STATIC):
        return total
    largest = max((_layer_bytes(layer, candidate, cell) for layer in shape.layers), default=0)
    return min(total, _RESIDENT_LAYERS * largest)


def held_tokens(layer: LayerShape, candidate: Candidate, cell: Cell, fed_tokens: int) -> int:
    """Tokens for which `layer` has room after `fed_tokens` of a sequence. Source: the layers' classes."""
    params = dict(candidate.cache_params)
    if candidate.cache.has_fixed_size:
        room = max(int(params.get("max_cache_len", 0)), cell.context_tokens + cell.output_tokens)
        return room if layer.window is None else min(room, layer.window)
    if layer.window is not None:
        return min(fed_tokens, layer.window - 1)
    if candidate.cache is CacheStrategy.SLIDING_WINDOW:
        return min(fed_tokens, int(params.get("window", fed_tokens)))
    return fed_tokens


def stored_bytes_per_element(candidate: Candidate) -> float:
    """Bytes of a cached element: the dtype's, or packed bits with their group's share of a scale and a zero point."""
    item = ITEM_BYTES[candidate.dtype]
    if candidate.cache is not CacheStrategy.QUANTIZED:
        return float(item)
    params = dict(candidate.cache_params)
    if params.get("backend") == "fp8":
        return 1.0
    group = int(params.get("q_group_size", _GROUP_TOKENS))
    return _PACKED_BYTES[int(params.get("nbits", 4))] + 2 * item / group


def scores_bytes(shape: ModelShape, candidate: Candidate, cell: Cell, device: DeviceType) -> int:
    """Bytes of the copies of one layer's attention scores that exist together while a prompt is read.

    Eager: the scores, their softmax in float32, and its copy in the model's dtype; on a CPU the softmax widens 16-bit
    scores first. `sdpa_math`: scores and softmax, both in float32, and which of them are masked. Source:
    `eager_attention_forward` of Llama; `_scaled_dot_product_attention_math` and `_safe_softmax` of PyTorch.
    """
    if candidate.attention not in WITH_SCORES:
        return 0
    item = ITEM_BYTES[candidate.dtype]
    per_score = 2 * _FLOAT_BYTES
    if candidate.attention is AttentionBackend.SDPA_MATH:
        per_score += 1
    elif item < _FLOAT_BYTES and device is DeviceType.CPU:
        per_score += item
    return cell.batch_size * shape.heads * chunk_tokens(candidate, cell) * cell.context_tokens * per_score


def repeats_keys(candidate: Candidate, shape: ModelShape, layer: LayerShape, *, masked: bool) -> bool:
    """Whether keys and values that query heads share are written out one for each head before attention: always for
    eager, and for SDPA where a mask is passed. Source: `use_gqa_in_sdpa` of Transformers. Latents are expanded to every
    head instead."""
    shared = 0 < layer.kv_heads < shape.heads and not layer.is_latent
    return shared and (masked or candidate.attention is AttentionBackend.EAGER)


def expanded_elements(shape: ModelShape, layer: LayerShape) -> int:
    """Elements for one token that are written when a latent is expanded: every head's unrotated key and value, and then
    its whole key. Source: `expand_kv` of `DeepseekV3Attention`."""
    if not layer.is_latent:
        return 0
    unrotated = layer.expanded_key_dim - layer.value_dim
    return shape.heads * (unrotated + layer.expanded_value_dim + layer.expanded_key_dim)


def chunk_tokens(candidate: Candidate, cell: Cell) -> int:
    """Prompt tokens of a sequence that are worked on at once."""
    return min(cell.context_tokens, candidate.prefill_chunk or cell.context_tokens)


def _layer_bytes(layer: LayerShape, candidate: Candidate, cell: Cell) -> int:
    item = ITEM_BYTES[candidate.dtype]
    fed = cell.context_tokens + cell.output_tokens - 1
    state = layer.state_elements * item
    if candidate.cache is CacheStrategy.QUANTIZED:
        return round(cell.batch_size * (state + layer.kv_elements * _quantized_bytes(candidate, cell)))
    tokens = held_tokens(layer, candidate, cell, fed)
    return cell.batch_size * state + kv_bytes(layer, rows=cell.batch_size, tokens=tokens, item_bytes=item)


def _quantized_bytes(candidate: Candidate, cell: Cell) -> float:
    """Per element of a token: the prompt is packed at once, what follows waits unpacked until the residual is full."""
    params, fed = dict(candidate.cache_params), cell.output_tokens - 1
    if params.get("backend") == "fp8":
        return float(cell.context_tokens + fed)
    residual = fed % int(params.get("residual_length", _RESIDUAL_TOKENS))
    packed = cell.context_tokens + fed - residual
    return packed * stored_bytes_per_element(candidate) + residual * ITEM_BYTES[candidate.dtype]


def _paged_bytes(shape: ModelShape, candidate: Candidate, cell: Cell) -> int:
    """Whole pages for every sequence and a spare one, and two sectors that padding is written to. A sector holds whole
    pages of either kind of layers. Source: `transformers.generation.continuous_batching.cache` of 5.23."""
    pages = cell.batch_size * -(-(cell.context_tokens + cell.output_tokens) // PAGE_TOKENS) + _SPARE_PAGES
    sector_layers = math.lcm(*Counter(layer.window for layer in shape.layers).values())
    padding = _PADDING_SECTORS * sector_layers * shape.layers[0].kv_elements
    elements = pages * shape.kv_elements_per_token + padding
    return elements * PAGE_TOKENS * ITEM_BYTES[candidate.dtype]


def _prefill_bytes(shape: ModelShape, candidate: Candidate, cell: Cell, device: DeviceType) -> int:
    """In the last layer, at the last piece of a prompt: in its MLP or in its attention, whichever needs more.

    All the time the embedded prompt, the layer's input and a normed copy are alive. The MLP adds the residual after
    attention and the inner activation three times: gate, up, product.
    """
    item, tokens = ITEM_BYTES[candidate.dtype], cell.batch_size * chunk_tokens(candidate, cell)
    mlp = (4 * shape.hidden + 3 * shape.intermediate) * tokens * item
    attention = 3 * shape.hidden * tokens * item + _attention_bytes(shape, candidate, cell, device)
    always = _mask_bytes(shape, candidate, cell) + _window_views_bytes(shape, candidate, cell)
    return always + max(mlp, attention) + _logits_bytes(shape, candidate, cell)


def _attention_bytes(shape: ModelShape, candidate: Candidate, cell: Cell, device: DeviceType) -> int:
    """The query and its output, keys and values as far as they are written out or expanded, and the scores, if any.
    `sdpa_math` works in float32, for which it makes copies, and scales query and keys into two more."""
    item, tokens = ITEM_BYTES[candidate.dtype], cell.batch_size * chunk_tokens(candidate, cell)
    in_pieces = chunk_tokens(candidate, cell) < cell.context_tokens
    query = max((shape.heads * layer.attended_key_dim for layer in shape.layers), default=0)
    repeated = any(
        repeats_keys(candidate, shape, layer, masked=in_pieces or layer.window is not None) for layer in shape.layers
    )
    expanded = max((expanded_elements(shape, layer) for layer in shape.layers), default=0)
    keys = (2 * query if repeated else expanded) * cell.batch_size * cell.context_tokens
    copies = 0
    if candidate.attention is AttentionBackend.SDPA_MATH:
        widened = 0 if item == _FLOAT_BYTES else query * tokens + 2 * query * cell.batch_size * cell.context_tokens
        copies = (widened + query * tokens + query * cell.batch_size * cell.context_tokens) * _FLOAT_BYTES
    return (2 * query * tokens + keys) * item + copies + scores_bytes(shape, candidate, cell, device)


def _mask_bytes(shape: ModelShape, candidate: Candidate, cell: Cell) -> int:
    """One mask for each kind of layers, for every query and key: numbers in eager attention; in others truth values,
    and for windows only, or where the prompt comes in pieces."""
    pairs = cell.batch_size * chunk_tokens(candidate, cell) * cell.context_tokens
    kinds = {layer.window for layer in shape.layers if layer.kv_heads}
    if candidate.attention is AttentionBackend.EAGER:
        return len(kinds) * pairs * ITEM_BYTES[candidate.dtype]
    return pairs * len(kinds if chunk_tokens(candidate, cell) < cell.context_tokens else kinds - {None})


def _window_views_bytes(shape: ModelShape, candidate: Candidate, cell: Cell) -> int:
    """A growing layer with a window keeps the latest keys and values as a view of all that it was given, which holds
    them in memory until the next token. Source: `DynamicSlidingWindowLayer.update`."""
    if candidate.cache.has_fixed_size or candidate.cache is CacheStrategy.PAGED:
        return 0
    beyond = [
        layer.kv_elements * min(chunk_tokens(candidate, cell), max(0, cell.context_tokens - layer.window + 1))
        for layer in shape.layers
        if layer.window is not None
    ]
    return cell.batch_size * sum(beyond) * ITEM_BYTES[candidate.dtype]


def _decode_bytes(shape: ModelShape, candidate: Candidate, cell: Cell) -> int:
    """A cache that grows is copied layer by layer: the new keys and values beside the old. A quantised one is unpacked,
    and once more put together with the residual. Then they may be written out for every head of the query."""
    fed = cell.context_tokens + cell.output_tokens
    copies = 0 if candidate.cache.has_fixed_size else 2 if candidate.cache is CacheStrategy.QUANTIZED else 1
    needs = [
        held_tokens(layer, candidate, cell, fed)
        * (copies * layer.kv_elements + _repeated_elements(shape, layer, candidate))
        for layer in shape.layers
    ]
    largest = cell.batch_size * max(needs, default=0) * ITEM_BYTES[candidate.dtype]
    return largest + _logits_bytes(shape, candidate, cell)


def _repeated_elements(shape: ModelShape, layer: LayerShape, candidate: Candidate) -> int:
    if not repeats_keys(candidate, shape, layer, masked=is_masked_at_decode(candidate)):
        return expanded_elements(shape, layer)
    return shape.heads * (layer.key_dim + layer.value_dim)


def is_masked_at_decode(candidate: Candidate) -> bool:
    """Whether one token at a time needs a mask: room that is still empty, or pages of others, must not be seen."""
    return candidate.cache.has_fixed_size or candidate.cache is CacheStrategy.PAGED


def _logits_bytes(shape: ModelShape, candidate: Candidate, cell: Cell) -> int:
    """Bytes of the last token's logits, in the model's dtype and as the float32 copy that the choice is made from."""
    return cell.batch_size * shape.vocab * (ITEM_BYTES[candidate.dtype] + _FLOAT_BYTES)


def _weights_on_the_way(shape: ModelShape, candidate: Candidate) -> int:
    """A layer's weights, where some wait in host memory until they are needed."""
    total = weight_bytes(shape, candidate.dtype)
    if device_weight_bytes(shape, candidate) == total or not shape.layers:
        return 0
    return total // len(shape.layers)
