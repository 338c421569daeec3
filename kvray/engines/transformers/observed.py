"""What really ran: attention operators of prefill and decode under the profiler, compiled graphs, cache classes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._profiler import _ExperimentalConfig
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile
from transformers.generation.streamers import BaseStreamer

from kvray.candidate import AttentionBackend
from kvray.engines.base import Compilation, Observed
from kvray.engines.transformers.arguments import CallArguments
from kvray.engines.transformers.attention import kernel_substitution, kernels_seen
from kvray.engines.transformers.caches import (
    cache_layers,
    dtype_name,
    expected_layer_bytes,
    kv_dtype,
    layer_bytes,
    tokens_taken,
)

OBSERVED_TOKENS = 2
"""One token of prefill and one of decode; reading the profiler's events costs more than running them."""


class PhaseProfiler(BaseStreamer):
    """A streamer that profiles a generation in two parts: up to the first token (prefill), and after it (decode)."""

    def __init__(self) -> None:
        self.prefill: frozenset[str] = frozenset()
        self.decode: frozenset[str] = frozenset()
        self._profile: Any = None
        self._calls = 0

    def put(self, value: Any) -> None:  # noqa: ARG002  (the library's signature)
        """Called with the prompt, then with each new token."""
        if self._calls == 0:
            self._profile = _start_profile()
        elif self._calls == 1:
            self.prefill = self._stop()
            self._profile = _start_profile()
        self._calls += 1

    def end(self) -> None:
        """Called when generation is over."""
        if self._calls > 1:
            self.decode = self._stop()

    def close(self) -> None:
        """Stop what still runs after a generation that failed: a process with a running profiler crashes at its end."""
        if self._profile is not None:
            self._stop()

    def _stop(self) -> frozenset[str]:
        running, self._profile = self._profile, None
        return _stopped(running)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Names of the operators and kernels of an observed generation, by phase."""

    prefill: frozenset[str]
    decode: frozenset[str]


def trace_streamed(generate: Callable[[BaseStreamer], object]) -> Trace:
    """Run `generate`, which generates `OBSERVED_TOKENS` tokens with the given streamer."""
    profiler = PhaseProfiler()
    with contextlib.closing(profiler):
        generate(profiler)
    return Trace(prefill=profiler.prefill, decode=profiler.decode)


def trace_whole(generate: Callable[[int], object]) -> Trace:
    """Run `generate(1)` for prefill and `generate(OBSERVED_TOKENS)` for decode, then showing both, on any thread."""
    phases = []
    for tokens in (1, OBSERVED_TOKENS):
        running = _start_profile(all_threads=True)
        try:
            generate(tokens)
        finally:
            names = _stopped(running)
        phases.append(names)
    return Trace(prefill=phases[0], decode=phases[1])


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is compared with what was asked for.

    Attributes:
        cache: the object that the observed generation used.
        attn_implementation: what the model's config says it runs.
        fed_tokens: tokens of each sequence that the cache must have taken.
        room: tokens that a cache of fixed size must hold, `None` for others.
        rows: sequences at once.
        dtype: of the weights.
        weights_on: devices that hold weights, as `hf_device_map` names them; empty where there is no such map.
    """

    trace: Trace
    cache: Any
    attn_implementation: str
    fed_tokens: int
    room: int | None
    rows: int
    dtype: torch.dtype
    weights_on: frozenset[str] = frozenset()


def observed(asked: AttentionBackend, arguments: CallArguments, evidence: Evidence) -> Observed:
    """Say what ran, and every difference from what was asked for."""
    prefill, decode = kernels_seen(evidence.trace.prefill), kernels_seen(evidence.trace.decode)
    cache, graphs = evidence.cache, _compiled_graphs()
    compiles = arguments.compile_mode is not None
    return Observed(
        cache_class=type(cache).__name__,
        cache_layers=None if arguments.paged else cache_layers(cache),
        kernel_prefill=" + ".join(prefill) or None,
        kernel_decode=" + ".join(decode) or None,
        kv_dtype=kv_dtype(cache),
        threads=torch.get_num_threads(),
        substitutions=tuple(
            text
            for text in (
                kernel_substitution(asked, "prefill", prefill) if _has_attention(evidence) else None,
                kernel_substitution(asked, "decode", decode) if _has_attention(evidence) else None,
                _dtype_substitution(arguments, evidence.dtype),
                *_cache_substitutions(arguments, evidence),
                _attention_substitution(arguments, evidence.attn_implementation),
                "asked for torch.compile, nothing was compiled" if compiles and graphs == 0 else None,
                _weights_substitution(arguments, evidence.weights_on),
            )
            if text is not None
        ),
    )


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


def _has_attention(evidence: Evidence) -> bool:
    """A model of linear attention alone calls no attention kernel."""
    layers = getattr(evidence.cache, "layers", None)
    return layers is None or any(hasattr(layer, "keys") for layer in layers)


def _cache_substitutions(arguments: CallArguments, evidence: Evidence) -> Iterator[str | None]:
    cache, ran = evidence.cache, type(evidence.cache).__name__
    if ran != arguments.cache_class:
        yield f"asked for {arguments.cache_class}, {ran} was used"
    elif not arguments.paged:
        yield _unused_cache(cache, ran, evidence.fed_tokens)
        yield _wrong_size(cache, ran, evidence)
        if dict(arguments.cache_options).get("offloading") and not getattr(cache, "offloading", False):
            yield f"asked for {ran} in host memory, it was not offloaded"


def _unused_cache(cache: Any, ran: str, fed: int) -> str | None:
    """Without `use_cache` the library feeds all tokens again at every step, into the cache that it does not use."""
    taken = tokens_taken(cache)
    if taken is None or taken == fed:
        return None
    return f"asked for {ran}, it took {taken} tokens where {fed} were fed: it was not used as a cache"


def _wrong_size(cache: Any, ran: str, evidence: Evidence) -> str | None:
    """Compare the bytes of each layer's keys and values with the formula, where heads do not differ by layer."""
    for index, layer in enumerate(cache.layers):
        keys = getattr(layer, "keys", None)
        if keys is None or keys.dim() != 4:
            continue
        expected = expected_layer_bytes(
            layer,
            tokens=evidence.fed_tokens,
            room=evidence.room,
            rows=evidence.rows,
            heads=int(keys.shape[1]),
            head_size=int(keys.shape[3]),
            item_bytes=evidence.dtype.itemsize,
        )
        held = layer_bytes(layer)
        if expected is not None and held != expected:
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
    if arguments.weights_limit_mib is None or {"cpu", "disk"} & weights_on:
        return None
    return f"asked for at most {arguments.weights_limit_mib} MiB of weights on the GPU, all of them were put there"


def _start_profile(*, all_threads: bool = False) -> Any:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    settings = _ExperimentalConfig(profile_all_threads=True) if all_threads else None
    running = profile(activities=activities, acc_events=True, experimental_config=settings)
    running.start()
    return running


def _stopped(running: Any) -> frozenset[str]:
    running.stop()
    return frozenset(event.key for event in running.key_averages())


def _compiled_graphs() -> int:
    return int(counters["stats"].get("unique_graphs", 0))
