"""What really ran: attention operators of prefill and decode under the profiler, compiled graphs, cache classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.utils import counters

from kvray.candidate import AttentionBackend, Candidate
from kvray.engines.base import Compilation, Observed
from kvray.engines.transformers.arguments import CallArguments, Split
from kvray.engines.transformers.attention import kernel_substitution, kernels_seen
from kvray.engines.transformers.caches import cache_layers, dtype_name, kv_dtype, layer_bytes, layer_shape, tokens_taken
from kvray.engines.transformers.cost_memory import held_tokens
from kvray.engines.transformers.tracing import Trace
from kvray.forecast.memory import kv_bytes
from kvray.workload import Cell


@dataclass(frozen=True, kw_only=True)
class UsedCache:
    """The cache that a generation left behind.

    Attributes:
        cache: the object that the model really used, which may be another than the one that it was given; `None`: none.
        cell: that was prepared.
        fed_tokens: tokens of each sequence that the cache must have taken.
        dtype: of the weights.
    """

    cache: Any
    cell: Cell
    fed_tokens: int
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class ProfiledGeneration:
    """What a profiled generation shows beside its cache.

    Attributes:
        attn_implementation: what the model's config says it runs.
        attends_in_its_own_way: whether the model's class takes no attention implementation but eager, by which it then
            means whatever its own code does.
        weights_on: devices that hold weights, as `hf_device_map` names them; empty where there is no such map.
        ranks: among which the library has divided the layers.
    """

    trace: Trace
    attn_implementation: str
    attends_in_its_own_way: bool = False
    weights_on: frozenset[str] = frozenset()
    ranks: int = 1


def observed_cache(candidate: Candidate, arguments: CallArguments, used: UsedCache) -> Observed:
    """Say which cache was used, and every difference from the one that was asked for."""
    if used.cache is None:
        return Observed(substitutions=(f"asked for {arguments.cache_class}, the model used no cache",))
    return Observed(
        cache_class=type(used.cache).__name__,
        cache_layers=None if arguments.paged else cache_layers(used.cache),
        kv_dtype=kv_dtype(used.cache),
        substitutions=_sentences(_cache_substitutions(candidate, arguments, used)),
    )


def observed(candidate: Candidate, arguments: CallArguments, used: UsedCache, evidence: ProfiledGeneration) -> Observed:
    """Say what ran, and every difference from what was asked for."""
    prefill, decode = kernels_seen(evidence.trace.prefill), kernels_seen(evidence.trace.decode)
    asked = candidate.attention
    any_kernel = evidence.attends_in_its_own_way and asked is AttentionBackend.EAGER
    has_attention = _has_attention(used.cache) and not any_kernel
    compiles = arguments.compile_mode is not None
    kernels = Observed(
        kernel_prefill=" + ".join(prefill) or None,
        kernel_decode=" + ".join(decode) or None,
        threads=torch.get_num_threads(),
        substitutions=_sentences(
            (
                kernel_substitution(asked, "prefill", prefill) if has_attention else None,
                kernel_substitution(asked, "decode", decode) if has_attention else None,
                _dtype_substitution(arguments, used.dtype),
                _attention_substitution(arguments, evidence.attn_implementation),
                "asked for torch.compile, nothing was compiled" if compiles and _compiled_graphs() == 0 else None,
                _weights_substitution(arguments, evidence.weights_on),
                _ranks_substitution(arguments, evidence.ranks),
            )
        ),
    )
    return kernels.joined(observed_cache(candidate, arguments, used))


def compilation() -> Compilation:
    """By the compiler's own counters, since `forget_compiled_graphs`."""
    inductor = counters["inductor"]
    made = inductor.get("fxgraph_cache_miss", 0) + inductor.get("fxgraph_cache_bypass", 0)
    found = inductor.get("fxgraph_cache_hit", 0)
    return Compilation(
        graph_breaks=int(sum(counters["graph_break"].values())),
        recompiles=max(0, _compiled_graphs() - 1),
        is_cold=made > 0 if made or found else None,
    )


def forget_compiled_graphs() -> None:
    """Start counting graphs and graph breaks from zero, so that an earlier model's do not count for the next."""
    counters.clear()


def _sentences(texts: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(text for text in texts if text is not None)


def _has_attention(cache: Any) -> bool:
    """A model of linear attention alone calls no attention kernel."""
    layers = getattr(cache, "layers", None)
    return layers is None or any(hasattr(layer, "keys") for layer in layers)


def _cache_substitutions(candidate: Candidate, arguments: CallArguments, used: UsedCache) -> Iterator[str | None]:
    ran = type(used.cache).__name__
    if ran != arguments.cache_class:
        yield f"asked for {arguments.cache_class}, {ran} was used"
    elif not arguments.paged:
        yield _unused_cache(used, ran)
        yield _wrong_size(candidate, used, ran)
        if dict(arguments.cache_options).get("offloading") and not getattr(used.cache, "offloading", False):
            yield f"asked for {ran} in host memory, it was not offloaded"


def _unused_cache(used: UsedCache, ran: str) -> str | None:
    """Without `use_cache` the library feeds all tokens again at every step, into the cache that it does not use."""
    taken = tokens_taken(used.cache)
    if taken is None or taken == used.fed_tokens:
        return None
    return f"asked for {ran}, it took {taken} tokens where {used.fed_tokens} were fed: it was not used as a cache"


def _wrong_size(candidate: Candidate, used: UsedCache, ran: str) -> str | None:
    """Compare the bytes of each layer's keys and values with the forecast's formula, for the layer's own sizes."""
    for index, layer in enumerate(used.cache.layers):
        shape = layer_shape(layer)
        if shape is None:
            continue
        tokens = held_tokens(shape, candidate, used.cell, used.fed_tokens)
        expected = kv_bytes(shape, rows=used.cell.batch_size, tokens=tokens, item_bytes=used.dtype.itemsize)
        held = layer_bytes(layer)
        if held != expected:
            return f"layer {index} of {ran} holds {held} bytes where {expected} were expected"
    return None


def _attention_substitution(arguments: CallArguments, ran: str) -> str | None:
    asked = arguments.attn_implementation
    if arguments.paged:
        ran = ran.removeprefix("paged|")  # some versions say so while they serve, as `paged|sdpa`
    return None if ran == asked else f"asked for attn_implementation={asked!r}, the model has {ran!r}"


def _dtype_substitution(arguments: CallArguments, ran: torch.dtype) -> str | None:
    name = dtype_name(ran)
    return None if name == arguments.dtype else f"asked for {arguments.dtype}, the weights are {name}"


def _weights_substitution(arguments: CallArguments, weights_on: frozenset[str]) -> str | None:
    elsewhere = {"cpu", "disk"} & weights_on
    if arguments.split is Split.DEVICE_MAP:
        if elsewhere:
            return f"asked for {arguments.gpus} GPUs, some weights are on the {' and the '.join(sorted(elsewhere))}"
        used = max(1, len(weights_on))  # there is no map where one GPU holds all
        return None if used == arguments.gpus else f"asked for {arguments.gpus} GPUs, the weights are on {used}"
    if arguments.weights_limit_mib is None or elsewhere:
        return None
    return f"asked for at most {arguments.weights_limit_mib} MiB of weights on the GPU, all of them were put there"


def _ranks_substitution(arguments: CallArguments, ranks: int) -> str | None:
    if arguments.split is not Split.TP or ranks == arguments.gpus:
        return None
    return f"asked for tensor parallelism over {arguments.gpus}, the layers are divided among {ranks}"


def _compiled_graphs() -> int:
    return int(counters["stats"].get("unique_graphs", 0))
