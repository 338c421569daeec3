"""Detects an error that would hit every candidate: the baseline and a very different candidate fail with the same
message before anything was measured. The sweep then ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields

from kvray.candidate import Candidate
from kvray.record import Phase, Role, TrialRecord, TrialStatus

_BEFORE_ANY_CACHE = (Phase.START, Phase.PREPARE, Phase.REFERENCE, Phase.LOAD)
_WHILE_LOADING = (TrialStatus.CRASHED, TrialStatus.TIMEOUT, TrialStatus.UNSUPPORTED)
"""Ends that are the candidate's own once its cache and attention are at work."""
_CHANGING = re.compile(r"0x[0-9a-f]+|\d+", re.IGNORECASE)
"""Parts of an error that differ from process to process: addresses, ids, sizes."""


def shared_error(records: Iterable[TrialRecord], baseline_id: str) -> TrialRecord | None:
    """`same_error` where more than the baseline was launched."""
    searched = _searched(records)
    return same_error(searched, baseline_id) if len(searched) > 1 else None


def same_error(records: Iterable[TrialRecord], baseline_id: str) -> TrialRecord | None:
    """`SharedErrorWatch.error` after `records`."""
    watch = SharedErrorWatch(baseline_id)
    for record in records:
        watch.ended(record)
    return watch.error


class SharedErrorWatch:
    """Knows after every trial whether an error may be everybody's, without looking at earlier trials again."""

    def __init__(self, baseline_id: str) -> None:
        self._baseline_id = baseline_id
        self._baseline: TrialRecord | None = None
        self._ends: set[tuple[object, ...]] = set()

    def ended(self, record: TrialRecord) -> None:
        """A trial has ended, now or in an earlier attempt."""
        if not record.status.was_launched or record.role is Role.CONFIRM:
            return
        if record.candidate_id == self._baseline_id and self._baseline is None:
            self._baseline = record
        if len(self._ends) < 2:
            self._ends.add(_key(record))

    @property
    def error(self) -> TrialRecord | None:
        """The baseline's record, if it ended with an error that need not be its own, and whatever else was launched
        ended with the same one; else `None`."""
        if self._baseline is None or len(self._ends) != 1 or not _may_be_shared(self._baseline):
            return None
        return self._baseline


def most_unlike(baseline: Candidate, candidates: Sequence[Candidate]) -> Candidate | None:
    """The first of `candidates` that has least in common with `baseline`; `None` where there is no other."""
    others = [one for one in candidates if one != baseline]
    return max(others, key=lambda one: _differences(baseline, one), default=None)


def _searched(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    return [one for one in records if one.status.was_launched and one.role is not Role.CONFIRM]


def _may_be_shared(record: TrialRecord) -> bool:
    """Whether a trial ended, without having measured anything, in a way in which every other might end."""
    if record.rung is not None or not record.message:
        return False
    if record.status in _WHILE_LOADING:
        return record.phase in _BEFORE_ANY_CACHE
    return record.status is TrialStatus.ERROR


def _differences(one: Candidate, other: Candidate) -> int:
    return sum(getattr(one, field.name) != getattr(other, field.name) for field in fields(Candidate))


def _key(record: TrialRecord) -> tuple[object, ...]:
    return record.status, record.phase, _CHANGING.sub("0", record.message or ""), record.rung
