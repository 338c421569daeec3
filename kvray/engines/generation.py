"""What a loaded model gives back: tokens with time stamps, what ran meanwhile, and what was compiled for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvray.candidate import ParamValue

OBSERVED_TOKENS = 2
"""One token of prefill and one of decode: what a profiler must see of a generation."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One generation with the instants at which its tokens were on the host.

    Attributes:
        started_s: `time.perf_counter()` at the moment the prompt was submitted.
        token_s: the same clock when the n-th token of every sequence was on the host; its length is the number of
            tokens that each sequence got.
        tokens: generated token ids, one tuple per sequence.
        sequence_s: the same clock for each sequence by itself, in the order of `tokens`; empty where all sequences get
            their tokens in lockstep, at the instants `token_s`.
    """

    started_s: float
    token_s: tuple[float, ...]
    tokens: tuple[tuple[int, ...], ...]
    sequence_s: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def of_sequences(
        cls, *, started_s: float, sequence_s: Sequence[Sequence[float]], tokens: tuple[tuple[int, ...], ...]
    ) -> Generation:
        """A generation whose sequences get their tokens at times of their own, as those of continuous batching do."""
        rows = tuple(tuple(row) for row in sequence_s)
        latest = tuple(max(stamps) for stamps in zip(*rows, strict=False))
        return cls(started_s=started_s, token_s=latest, tokens=tokens, sequence_s=rows)

    @property
    def stamp_rows(self) -> tuple[tuple[float, ...], ...]:
        """The instants of each sequence's tokens; a single row where all are in lockstep."""
        return self.sequence_s or (self.token_s,)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What really ran, seen from inside the process. `None`: the engine cannot tell.

    Attributes:
        kernel_prefill, kernel_decode: names of the attention operators.
        cache_class, cache_layers: class of the cache object, and the classes of its layers.
        threads: intra-op threads that the engine computes with.
        substitutions: differences from what the candidate asked for, one sentence each.
        processors: names of the model's own settings that change the scores of every token.
        processor_share: share of a token's time that this takes.
        resolved: what the engine made of the candidate and of all that was left to it, by the names that it has for its
            own settings; empty: it does not tell.
        generation: the generation that was observed, if it can stand for an unobserved one: its clock leaves out what
            starting and stopping the profiler took.
    """

    cache_class: str | None = None
    cache_layers: str | None = None
    kernel_prefill: str | None = None
    kernel_decode: str | None = None
    kv_dtype: str | None = None
    threads: int | None = None
    substitutions: tuple[str, ...] = ()
    processors: str | None = None
    processor_share: float | None = None
    resolved: Mapping[str, ParamValue] = field(default_factory=dict)
    generation: Generation | None = None

    def joined(self, other: Observed) -> Observed:
        """What was seen here and in `other`. Where they differ, both are named: `sdpa_flash | sdpa_math`."""
        return Observed(
            cache_class=_either(self.cache_class, other.cache_class),
            cache_layers=_either(self.cache_layers, other.cache_layers),
            kernel_prefill=_either(self.kernel_prefill, other.kernel_prefill),
            kernel_decode=_either(self.kernel_decode, other.kernel_decode),
            kv_dtype=_either(self.kv_dtype, other.kv_dtype),
            threads=other.threads if self.threads is None else self.threads,
            substitutions=tuple(dict.fromkeys((*self.substitutions, *other.substitutions))),
            processors=_either(self.processors, other.processors),
            processor_share=_higher(self.processor_share, other.processor_share),
            resolved={**self.resolved, **other.resolved},
        )


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """What the compiler has done so far in this process.

    Attributes:
        graph_breaks: places where it gave the code back to Python.
        recompiles: graphs beyond the first, e.g. one for each further size of a static cache.
        is_cold: whether it had to compile, `False` if all came from its cache on disk; `None` if it does not tell.
    """

    graph_breaks: int
    recompiles: int
    is_cold: bool | None


def _higher(known: float | None, new: float | None) -> float | None:
    return max((one for one in (known, new) if one is not None), default=None)


def _either(known: str | None, new: str | None) -> str | None:
    told = [*(known.split(" | ") if known else ()), *(new.split(" | ") if new else ())]
    return " | ".join(dict.fromkeys(told)) or None
