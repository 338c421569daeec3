"""Decides what a further attempt at a sweep may use: whether it measures the same, and which records count.

Pure functions over manifests and records; `kvray.tuning.search` reads and writes them.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvray.errors import ResultsError
from kvray.judgement import Limits
from kvray.record import Role, TrialRecord, TrialResult, TrialStatus, version_fields
from kvray.store.fingerprint import SweepFingerprint, release_of
from kvray.store.manifest import SweepAttempt, SweepManifest

_OF_AN_ATTEMPT = ("kvray_version", "arguments", "search", "budget_s", "max_trials", "confirm_rounds", "seed")


def first_attempt(manifest: SweepManifest, fingerprint: SweepFingerprint, *, candidates: int) -> SweepManifest:
    """The manifest of a new sweep with its first attempt."""
    attempt = _attempt(manifest, fingerprint, fingerprint.digest, candidates=candidates)
    return manifest.model_copy(update={"attempts": (attempt,)})


def further_attempt(
    old: SweepManifest,
    new: SweepManifest,
    fingerprint: SweepFingerprint,
    *,
    candidates: int,
    results: Iterable[TrialResult],
    force: bool,
) -> SweepManifest:
    """The manifest of a resumed sweep: the values of `new`, with the history of `old`.

    If the attempt measures in the same way as an earlier one, it uses that one's records, even if other attempts came
    in between.

    Raises:
        ResultsError: its measurements could not be compared with any of the records, and `force` is not set.
    """
    attempts = old.attempts or (_attempt_of_version_1(old, results),)
    known = [one.fingerprint_id for one in reversed(attempts)]
    same = next((key for key in known if not _differences(attempts, key, fingerprint)), None)
    if same is None and not force:
        raise _differs(old.run_id, _differences(attempts, known[0], fingerprint))
    attempt = _attempt(new, fingerprint, same or fingerprint.digest, candidates=candidates)
    history = {"run_id": old.run_id, "created_at": old.created_at, "code_check": old.code_check}
    return new.model_copy(update={**history, "attempts": (*attempts, attempt)})


def asks_nothing_new(
    manifest: SweepManifest, found: Recall, results: Iterable[TrialResult], space: Collection[str]
) -> bool:
    """Whether the records answer the last attempt before it begins, so that an interruption cannot make the sweep
    incomplete.

    Two things must hold. An earlier attempt with the same fingerprint, search and judgement, and with bounds at least
    as wide, was finished. And none of its results is missing: each of `space` (candidate ids) was launched or has a
    record that says why not, and every launched trial is in `found`, with its raw runs and not to be retried.
    """
    *before, last = manifest.attempts
    if not any(_asks_no_more(last, one) for one in before):
        return False
    current, _ = current_results(manifest, results)
    launched = sum(one.record.status.was_launched for one in current)
    return len(found.results) == launched and set(space) <= {one.record.candidate_id for one in current}


def current_results(
    manifest: SweepManifest, results: Iterable[TrialResult]
) -> tuple[tuple[TrialResult, ...], tuple[TrialResult, ...]]:
    """The trials with the last attempt's fingerprint, which are ranked, and the others, which are only kept. A check
    that was kept beside the sweep is neither."""
    current: list[TrialResult] = []
    set_aside: list[TrialResult] = []
    for result in results:
        if result.record.role is Role.CHECK:
            continue
        own = result.record.fingerprint or manifest.first_fingerprint_id
        (current if own == manifest.fingerprint_id else set_aside).append(result)
    # In version 1, candidates that were never launched have no fingerprint; those launched later have one.
    launched = [one.record for one in current if one.record.status.was_launched]
    overtaken = {(one.candidate_id, kind) for one in launched for kind in (one.gpu_type, None)}
    kept = (one for one in current if one.record.status.was_launched or _subject(one.record) not in overtaken)
    return tuple(kept), tuple(set_aside)


@dataclass(frozen=True, kw_only=True)
class Recall:
    """What a further attempt takes from the records.

    Attributes:
        results: trials that need not be measured again.
        retry: ids of candidates that failed in the search, or were disturbed, and are to be launched again.
        trial_ids: by candidate id, those of searched trials that the next measurement of the candidate replaces.
    """

    results: tuple[TrialResult, ...] = ()
    retry: tuple[str, ...] = ()
    trial_ids: Mapping[str, str] = field(default_factory=dict)


def recall(
    manifest: SweepManifest,
    results: Iterable[TrialResult],
    retry: Collection[TrialStatus] = (),
    *,
    disturbed: Collection[str] = (),
    reopens_stopped: bool = False,
) -> Recall:
    """What was measured under the last attempt's fingerprint, without failures that have a status in `retry`.

    Candidates with such a failure are launched again. So are those whose trial ended for a loss of quality that the
    limit now allows. A trial that was interrupted is ignored, and so is one whose raw runs are lost, because what it
    measured cannot be shown. With `reopens_stopped`, trials that weights or limits of an earlier attempt stopped early
    are ignored too.

    Args:
        disturbed: ids of candidates that are measured again because their figures rest on disturbed runs alone.
    """
    current, _ = current_results(manifest, results)
    launched = [one for one in current if one.record.status.was_launched]
    records, limits = [one.record for one in launched], manifest.profile.limits
    retried = {one.trial_id for one in records if one.status in retry or is_allowed_now(one, limits)}
    retried |= {one.trial_id for one in records if one.candidate_id in disturbed}
    ignored = {one.trial_id for one in records if one.status is TrialStatus.INTERRUPTED}
    ignored |= {one.record.trial_id for one in launched if one.has_lost_its_runs}
    if reopens_stopped:
        ignored |= {one.trial_id for one in judged_by_others(manifest, launched)}
    left_out = retried | ignored
    searched = [one for one in records if one.role is not Role.CONFIRM]
    return Recall(
        results=tuple(one for one in launched if one.record.trial_id not in left_out),
        retry=tuple(one.candidate_id for one in searched if one.trial_id in retried),
        trial_ids={one.candidate_id: one.trial_id for one in searched if one.trial_id in left_out},
    )


def judged_by_others(manifest: SweepManifest, results: Iterable[TrialResult]) -> tuple[TrialRecord, ...]:
    """The trials that were stopped early, or not launched, because of weights or limits that no longer apply."""
    left = (one.record for one in results if one.record.status in (TrialStatus.STOPPED, TrialStatus.SKIPPED))
    return tuple(record for record in left if _judges_otherwise(manifest, record))


def of_type(results: Iterable[TrialResult], gpu_type: str | None, device_name: str) -> tuple[TrialResult, ...]:
    """The trials that were measured, or were to be, on GPUs of `gpu_type`; all of them where Ray knows no type.

    Args:
        device_name: of these GPUs, by which older records are known.
    """
    if gpu_type is None:
        return tuple(results)

    def is_of_type(record: TrialRecord) -> bool:
        if record.gpu_type is not None:
            return record.gpu_type == gpu_type
        return record.device_name in (None, device_name)

    return tuple(one for one in results if is_of_type(one.record))


def is_allowed_now(record: TrialRecord, limits: Limits) -> bool:
    """Whether the trial was ended for a loss of quality that `limits` allow."""
    is_known = record.status is TrialStatus.QUALITY and record.kl_mean is not None
    return is_known and limits.allow_loss(record.kl_mean, record.kl_decode)


def earlier_session(manifest: SweepManifest, results: Iterable[TrialResult]) -> Sequence[dt.datetime]:
    """Start times, in order, of the launched trials that were recorded before the last attempt began."""
    begun = (one.record.started_at for one in results if one.record.status.was_launched)
    return sorted(start for start in begun if start is not None and start < manifest.session_started_at)


def _subject(record: TrialRecord) -> tuple[str, str | None]:
    return record.candidate_id, record.gpu_type


def _judges_otherwise(manifest: SweepManifest, record: TrialRecord) -> bool:
    """Whether the attempt that stopped it, or that ended without launching it, had other weights or limits."""
    if record.started_at is not None:
        before = [one for one in manifest.attempts if one.started_at <= record.started_at]
    else:
        before = [one for one in manifest.attempts if one.ended_at is not None]
    return bool(before) and _judgement(before[-1]) not in (None, manifest.profile.judgement)


def _judgement(attempt: SweepAttempt) -> dict[str, Any] | None:
    profile = attempt.fingerprint.profile
    return None if profile is None else profile.judgement


def _asks_no_more(attempt: SweepAttempt, earlier: SweepAttempt) -> bool:
    return (
        earlier.ended_at is not None
        and earlier.fingerprint_id == attempt.fingerprint_id
        and (earlier.search, earlier.seed) == (attempt.search, attempt.seed)
        and _judgement(earlier) == _judgement(attempt)
        and attempt.confirm_rounds <= earlier.confirm_rounds
        and _or_endless(attempt.budget_s) <= _or_endless(earlier.budget_s)
        and _or_endless(attempt.max_trials) <= _or_endless(earlier.max_trials)
    )


def _or_endless(bound: float | None) -> float:
    return math.inf if bound is None else bound


def _differences(attempts: Iterable[SweepAttempt], key: str, fingerprint: SweepFingerprint) -> tuple[str, ...]:
    """Differences from all attempts with the fingerprint `key`: a later attempt may know more of it than the first."""
    alike = (one.fingerprint for one in attempts if one.fingerprint_id == key)
    return tuple(dict.fromkeys(told for one in alike for told in one.differences(fingerprint)))


def _attempt(
    manifest: SweepManifest, fingerprint: SweepFingerprint, fingerprint_id: str, *, candidates: int | None
) -> SweepAttempt:
    values: dict[str, Any] = {name: getattr(manifest, name) for name in _OF_AN_ATTEMPT}
    return SweepAttempt(
        started_at=manifest.created_at,
        candidates=candidates,
        fingerprint=fingerprint,
        fingerprint_id=fingerprint_id,
        **values,
    )


def _attempt_of_version_1(manifest: SweepManifest, results: Iterable[TrialResult]) -> SweepAttempt:
    """The attempt that a manifest of version 1 and its records describe."""
    launched = [one.record for one in results if one.record.status.was_launched]
    fingerprint = SweepFingerprint(
        engine=manifest.engine,
        model_id=manifest.model_id,
        model_revision=manifest.model_revision,
        profile=manifest.profile,
        baseline_id=manifest.baseline_id,
        device=manifest.device,
        device_name=manifest.device_name,
        driver_version=_first(launched, "driver_version"),
        cpus=_first(launched, "cpus"),
        **version_fields(_first(launched, "versions") or {}),
        kvray_release=release_of(manifest.kvray_version),
    )
    return _attempt(manifest, fingerprint, fingerprint.digest, candidates=None)


def _first(records: Iterable[TrialRecord], column: str) -> Any:
    return next((value for record in records if (value := getattr(record, column)) is not None), None)


def _differs(run_id: str, differences: Sequence[str]) -> ResultsError:
    return ResultsError(
        f"Sweep {run_id!r} cannot be resumed, because new measurements could not be compared with its own. "
        f"Different now: {'; '.join(differences)}.",
        hint="Undo that, start a new sweep without --resume, or pass --force to kvray tune: it measures all anew "
        "beside it.",
    )
