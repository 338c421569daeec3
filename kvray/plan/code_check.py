"""Holds what the winner's code did against what its trials recorded. Runs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from kvray.candidate import Candidate, CompileMode, DType
from kvray.engines.snippet_case import SnippetRun
from kvray.record import TrialRecord
from kvray.store.manifest import CodeOutcome

Rows = tuple[tuple[int, ...], ...]


def compare(ran: SnippetRun, trials: Sequence[TrialRecord]) -> tuple[CodeOutcome, str]:
    """Whether the code did what the `trials` of its candidate did (all with sample tokens), and a sentence about it."""
    record = trials[0]
    alike, drift = _tokens_alike(ran.tokens, [sample_tokens(one) for one in trials], record.candidate)
    wrong = [
        *_others("cache", record.cache_class, ran.cache_class),
        *_others("prefill", record.kernel_prefill, ran.kernel_prefill),
        *_others("decode", record.kernel_decode, ran.kernel_decode),
        *([] if alike else [f"it generates other tokens: {drift}"]),
    ]
    if wrong:
        return CodeOutcome.DIFFERS, f"The winner's code does not do what was measured: {'; '.join(wrong)}."
    seen = dict.fromkeys(one for one in (ran.cache_class, ran.kernel_prefill, ran.kernel_decode) if one)
    same = ["the same tokens", *seen] if drift is None else list(seen)
    told = f"The winner's code was run once in a separate process: {', '.join(same)}, as measured."
    return CodeOutcome.CHECKED, told if drift is None else f"{told} Of its tokens, {drift}."


def sample_tokens(record: TrialRecord) -> Rows:
    """The tokens that a trial recorded; none in older records, and where they cannot be read."""
    try:
        return tuple(tuple(row) for row in json.loads(record.sample_tokens or "[]"))
    except (ValueError, TypeError, RecursionError):
        return ()


def _others(what: str, measured: str | None, ran: str | None) -> Iterator[str]:
    """A record names all that was seen in its cells, as `a | b`."""
    if measured is not None and ran is not None and ran not in measured.split(" | "):
        yield f"{what} {ran} where {measured} was measured"


def _tokens_alike(tokens: Rows, measured: Sequence[Rows], candidate: Candidate) -> tuple[bool, str | None]:
    """Whether the tokens may be called the same, and which of them are not, in words.

    What the trials themselves do not agree on is not asked of the code. Arithmetic in 16 bits and freshly compiled code
    may choose another of two tokens that are almost as probable; then all that follows is different, too.
    """
    alike = max(_leading(tokens, one) for one in measured)
    agreed = min(_leading(one, measured[0]) for one in measured)
    if alike >= agreed:
        return True, None
    asked = len(measured[0][0])
    drift = f"{alike} of {asked} are the same until they differ"
    may_drift = candidate.dtype is not DType.FLOAT32 or candidate.compile is not CompileMode.OFF
    return may_drift and alike > 0, f"{drift}, as rounding in {candidate.dtype} can make them" if may_drift else drift


def _leading(one: Rows, other: Rows) -> int:
    """How many tokens at the beginning are the same in every row."""
    same = [
        next((place for place, (a, b) in enumerate(zip(*rows, strict=False)) if a != b), min(map(len, rows)))
        for rows in zip(one, other, strict=False)
    ]
    return min(same) if same and len(one) == len(other) else 0
