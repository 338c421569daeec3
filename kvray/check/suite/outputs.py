"""Whether a case still runs and answers the same: tokens, log-probabilities, size of the cache. Pure functions."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kvray.check.suite.cases import Case
from kvray.check.suite.record import Outputs, RecordedCase
from kvray.ratios import memory_text


class Strictness(enum.StrEnum):
    """How alike outputs must be."""

    BITS = "bit by bit"
    """One machine, one version of everything, and the case repeats itself."""
    TOLERANCE = "within tolerance"


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found of one case.

    Attributes:
        failures: each a reason to fail.
        remarks: what differs and is no failure.
        strictness: `None`: no outputs could be compared.
    """

    failures: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    strictness: Strictness | None = None


@dataclass(frozen=True, kw_only=True)
class OutputRules:
    """How outputs are compared.

    Attributes:
        same_surroundings: whether both were measured on one machine, with the same values of all environment variables
            that may change the last bits of an output.
        tolerance: nats in place of every case's own; `None`: each case's own.
        memory_margin: share by which a cache may grow.
    """

    same_surroundings: bool
    tolerance: float | None = None
    memory_margin: float = 0.0


def compare_outputs(case: Case, before: RecordedCase, now: RecordedCase, rules: OutputRules) -> Findings:
    """What became different from `before` to `now`, beside times, memory of processes, and what ran."""
    if before.works and not now.works:
        return Findings(failures=(f"it no longer runs ({_ended(now)}): {now.message or 'it does not say why'}",))
    if not now.works:
        return Findings(remarks=(f"it does not run, as before ({now.status}): {now.message or ''}".rstrip(": "),))
    if not before.works:
        return Findings(remarks=(f"it runs now; before ({before.status}): {before.message or ''}".rstrip(": "),))
    strictness = strictness_of(before, now, rules)
    tolerance = case.tolerance if rules.tolerance is None else rules.tolerance
    failures = (
        *_of_model(before, now),
        *_of_tokens(before.outputs, now.outputs),
        *_of_logs(before.outputs, now.outputs, strictness, tolerance),
        *_of_cache(before.kv_cache_mib, now.kv_cache_mib, rules.memory_margin),
    )
    return Findings(failures=failures, remarks=tuple(_remarks(before, now, strictness)), strictness=strictness)


def _ended(case: RecordedCase) -> str:
    """How it ended, and how often where not always."""
    worked, failed = len(case.measured.processes), len(case.measured.failures)
    return f"{case.status} in {failed} of {worked + failed} processes" if worked else case.status.value


def strictness_of(before: RecordedCase, now: RecordedCase, rules: OutputRules) -> Strictness:
    """Bit by bit where nothing that may change the order of operations differs, and the case repeats itself."""
    ran_before, ran_now = before.measured.ran, now.measured.ran
    same_threads = ran_before is not None and ran_now is not None and ran_before.threads == ran_now.threads
    repeats = before.outputs.repeats is not False and now.outputs.repeats is not False
    is_same = rules.same_surroundings and before.versions == now.versions and same_threads and repeats
    return Strictness.BITS if is_same and rules.tolerance is None else Strictness.TOLERANCE


def largest_change(before: Outputs, now: Outputs) -> float | None:
    """Nats by which the log-probability that moved most has moved; infinite where one is no longer finite; `None`
    where there are none to compare."""
    if not before.logs or not now.logs or before.text != now.text or _shape(before) != _shape(now):
        return None
    pairs = [pair for rows in zip(before.logs, now.logs, strict=True) for pair in zip(*rows, strict=True)]
    moved = [np.inf if a is None or b is None else abs(a - b) for a, b in pairs if (a, b) != (None, None)]
    return float(max(moved, default=0.0))


def _shape(outputs: Outputs) -> list[int]:
    return [len(row) for row in outputs.logs]


def _of_model(before: RecordedCase, now: RecordedCase) -> Iterator[str]:
    if before.model != now.model:
        yield "its model has other weights, so nothing is comparable"


def _of_tokens(before: Outputs, now: Outputs) -> Iterator[str]:
    if before.tokens == now.tokens:
        return
    for row, (old, new) in enumerate(zip(before.tokens, now.tokens, strict=False)):
        place = next((at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
        if place is not None:
            where = f" of the {'first' if row == 0 else 'last'} sequence" if len(now.tokens) > 1 else ""
            yield f"another token: number {place + 1}{where} is {new[place]}, was {old[place]}"
            return
    yield f"{_count(now)} tokens were noted, and {_count(before)} before"


def _count(outputs: Outputs) -> str:
    return " + ".join(str(len(row)) for row in outputs.tokens) or "no"


def _of_logs(before: Outputs, now: Outputs, strictness: Strictness, tolerance: float) -> Iterator[str]:
    if not before.logs:
        return
    if not now.logs:
        yield f"it tells no log-probabilities any more: {now.note or 'it does not say why'}"
        return
    if bad := sum(value is None for row in now.logs for value in row):
        yield f"log-probabilities are not finite at {bad} tokens"
        return
    if before.text != now.text:
        yield "another text was fed, so log-probabilities are not comparable: its tokenizer writes other tokens"
        return
    moved = largest_change(before, now)
    if moved is None:
        yield f"it tells {_shape(now)} log-probabilities, and told {_shape(before)}"
    elif moved > 0 and strictness is Strictness.BITS:
        yield f"log-probabilities moved by up to {moved:.2g} nats, with the same machine and versions"
    elif moved > tolerance:
        yield f"log-probabilities moved by up to {moved:.2g} nats, more than the tolerance of {tolerance:g}"


def _of_cache(before: float | None, now: float | None, margin: float) -> Iterator[str]:
    if before and now and now > before * (1 + margin):
        yield f"the cache takes {memory_text(now / before)}: {now:.3g} MiB, was {before:.3g} MiB"


def _remarks(before: RecordedCase, now: RecordedCase, strictness: Strictness) -> Iterator[str]:
    if before.kv_cache_mib and now.kv_cache_mib and now.kv_cache_mib < before.kv_cache_mib:
        yield f"the cache is smaller: {now.kv_cache_mib:.3g} MiB, was {before.kv_cache_mib:.3g} MiB"
    if before.outputs.logs and before.outputs.text == now.outputs.text:
        moved = largest_change(before.outputs, now.outputs)
        if moved is not None and strictness is Strictness.TOLERANCE:
            yield f"log-probabilities moved by up to {moved:.2g} nats" if moved else "outputs are the same bit by bit"
    if not before.outputs.logs and not now.outputs.logs:
        yield f"log-probabilities are not compared: {now.outputs.note or 'the engine tells none'}"
    if now.outputs.repeats is False:
        yield "its processes do not answer the same bit by bit"
