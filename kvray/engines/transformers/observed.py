"""What really ran: attention operators of prefill and decode under the profiler, compiled graphs, cache classes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile
from transformers.generation.streamers import BaseStreamer

from kvray.candidate import AttentionBackend
from kvray.engines.base import Observed
from kvray.engines.transformers.arguments import CallArguments
from kvray.engines.transformers.attention import kernel_substitution, kernels_seen
from kvray.engines.transformers.caches import cache_layers, kv_dtype, tokens_taken

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
        running.stop()
        return frozenset(event.key for event in running.key_averages())


def observe(
    generate: Callable[[BaseStreamer], object],
    *,
    asked: AttentionBackend,
    arguments: CallArguments,
    cache_of: Callable[[], Any],
    attn_implementation: str,
    prompt_tokens: int,
) -> Observed:
    """Run `generate` with a profiling streamer and compare what ran with what was asked for.

    Args:
        generate: generates `OBSERVED_TOKENS` tokens with the given streamer.
        cache_of: the cache that the generation used, asked for afterwards.
        attn_implementation: what the model's config says it runs.
    """
    profiler = PhaseProfiler()
    with contextlib.closing(profiler):
        generate(profiler)
    cache = cache_of()
    prefill, decode = kernels_seen(profiler.prefill), kernels_seen(profiler.decode)
    graphs = _compiled_graphs()
    differences = [
        kernel_substitution(asked, "prefill", prefill),
        kernel_substitution(asked, "decode", decode),
        _cache_substitution(arguments, cache, prompt_tokens),
        _attention_substitution(arguments, attn_implementation),
        "asked for torch.compile, nothing was compiled" if arguments.compile_mode and graphs == 0 else None,
    ]
    return Observed(
        cache_class=type(cache).__name__,
        cache_layers=cache_layers(cache),
        kernel_prefill=" + ".join(prefill) or None,
        kernel_decode=" + ".join(decode) or None,
        graph_breaks=_graph_breaks() if arguments.compile_mode else None,
        recompiles=max(0, graphs - 1) if arguments.compile_mode else None,
        kv_dtype=kv_dtype(cache),
        threads=torch.get_num_threads(),
        substitutions=tuple(text for text in differences if text is not None),
    )


def forget_compiled_graphs() -> None:
    """Start counting graphs and graph breaks from zero, so that an earlier model's do not count for the next."""
    counters.clear()


def _cache_substitution(arguments: CallArguments, cache: Any, prompt_tokens: int) -> str | None:
    ran = type(cache).__name__
    if ran != arguments.cache_class:
        return f"asked for {arguments.cache_class}, {ran} was used"
    # Each token is fed once; the last one has not been fed back yet. Without `use_cache` the library feeds all of them
    # again at every step, into the very cache that it does not use.
    taken, fed = tokens_taken(cache), prompt_tokens + OBSERVED_TOKENS - 1
    if taken is not None and taken != fed:
        return f"asked for {ran}, it took {taken} tokens where {fed} were fed: it was not used as a cache"
    return None


def _attention_substitution(arguments: CallArguments, ran: str) -> str | None:
    asked = arguments.attn_implementation
    return None if ran == asked else f"asked for attn_implementation={asked!r}, the model has {ran!r}"


def _start_profile() -> Any:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    running = profile(activities=activities, acc_events=True)
    running.start()
    return running


def _compiled_graphs() -> int:
    return int(counters["stats"].get("unique_graphs", 0))


def _graph_breaks() -> int:
    return int(sum(counters["graph_break"].values()))
