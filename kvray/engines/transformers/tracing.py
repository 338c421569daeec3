"""Names of the operators and kernels that a generation ran, from PyTorch's profiler.

The names are read from the profiler's raw events. Its own summary (`key_averages`) takes longer than the generation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile
from transformers.generation.streamers import BaseStreamer

from kvray.engines.base import OBSERVED_TOKENS


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Names of the operators and kernels of an observed generation, by phase."""

    prefill: frozenset[str]
    decode: frozenset[str]


class StampingStreamer(BaseStreamer):
    """Notes the clock each time tokens are on the host. `generate` puts the prompt first, then every new token."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def put(self, value: Any) -> None:  # noqa: ARG002  (the library's signature)
        """Called by `generate` with a tensor on the host."""
        self.stamps.append(time.perf_counter())

    def end(self) -> None:
        """Called by `generate` when it is done."""


class ProfilingStreamer(StampingStreamer):
    """Profiles a generation up to its first token (prefill) and from there to the second (decode).

    The stamps leave out the seconds that starting and stopping the profiler took.
    """

    def __init__(self) -> None:
        super().__init__()
        self._running: Any = None
        self._done: list[Any] = []
        self._spent_s = 0.0

    def put(self, value: Any) -> None:
        """Called with the prompt, then with each new token."""
        super().put(value)
        noted_s = self.stamps[-1]
        self.stamps[-1] -= self._spent_s
        if len(self.stamps) > 1:
            self.close()
        if len(self.stamps) <= OBSERVED_TOKENS:
            self._running = start_profile()
        self._spent_s += time.perf_counter() - noted_s

    def close(self) -> None:
        """Stop what still runs: a process with a running profiler crashes at its end."""
        if self._running is not None:
            running, self._running = self._running, None
            running.stop()
            self._done.append(running)

    def trace(self) -> Trace:
        """What ran, once generation is over."""
        prefill, decode = (event_names(one) for one in self._done)
        return Trace(prefill=prefill, decode=decode)


def trace_whole(generate: Callable[[int], object]) -> Trace:
    """Run `generate(1)` for prefill and `generate(OBSERVED_TOKENS)` for decode, then showing both, on any thread."""
    phases = []
    for tokens in (1, OBSERVED_TOKENS):
        running = start_profile(all_threads=True)
        try:
            generate(tokens)
        finally:
            running.stop()
        phases.append(event_names(running))
    return Trace(prefill=phases[0], decode=phases[1])


def start_profile(*, all_threads: bool = False) -> Any:
    """A running profiler, to be stopped in any case."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    settings = _ExperimentalConfig(profile_all_threads=True) if all_threads else None
    running = profile(activities=activities, experimental_config=settings)
    running.start()
    return running


def event_names(stopped: Any) -> frozenset[str]:
    """The names of all operators, kernels and calls that a stopped profiler has seen."""
    return frozenset(event.name() for event in stopped.profiler.kineto_results.events())
