"""What a checkpoint's generation config does to the scores of every token, and what share of a token's time it takes.

A plain `generate` does that work too, so it is part of what is measured; where it is much, a reader should know.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList

from kvray.engines.base import OBSERVED_TOKENS
from kvray.engines.transformers.one_sequence import KEPT_SETTINGS


def active_processors(settings: GenerationConfig) -> str | None:
    """Names of the settings that change scores, e.g. `repetition_penalty + suppress_tokens`; `None` if none does."""
    wanted = [name for name in KEPT_SETTINGS if not name.endswith("token_id")]
    return " + ".join(name for name in wanted if _has_effect(getattr(settings, name, None))) or None


@contextmanager
def timed_processors(model: Any) -> Iterator[list[float]]:
    """Within it, the seconds that the processors take for each token of `model.generate` are added to the list."""
    make = getattr(model, "_get_logits_processor", None)
    spent_s: list[float] = []
    if make is None:
        yield spent_s
        return
    model._get_logits_processor = lambda *given, **named: _Timed(make(*given, **named), spent_s)
    try:
        yield spent_s
    finally:
        del model._get_logits_processor


def processor_share(spent_s: Sequence[float], stamps_s: Sequence[float]) -> float | None:
    """Share of the time between tokens that their processors took; `None` where that was not seen. The tokens at which
    a profiler ran are left out, because it slows both in its own way.

    Args:
        stamps_s: when each token was on the host.
    """
    gaps = [later - earlier for earlier, later in itertools.pairwise(stamps_s)][OBSERVED_TOKENS - 1 :]
    calls = spent_s[OBSERVED_TOKENS:]
    if len(spent_s) != len(stamps_s) or not gaps or min(gaps) <= 0:
        return None
    return statistics.median(calls) / statistics.median(gaps)


def _has_effect(value: Any) -> bool:
    """A penalty of 1 and a length of 0 have none."""
    return value if isinstance(value, bool) else value not in (None, 0, 1, [])


class _Timed(LogitsProcessorList):
    def __init__(self, processors: LogitsProcessorList, spent_s: list[float]) -> None:
        super().__init__(processors)
        self._spent_s = spent_s

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        _wait_for(scores)
        started = time.perf_counter()
        processed = super().__call__(input_ids, scores, **options)
        _wait_for(processed)
        self._spent_s.append(time.perf_counter() - started)
        return processed


def _wait_for(tensor: torch.Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
