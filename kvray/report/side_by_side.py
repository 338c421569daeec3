"""How many trials ran beside others of their sweep on the same machine, which share its memory, power and caches."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Sequence

from kvray.record import TrialRecord
from kvray.report import formats
from kvray.store.manifest import SweepManifest

_AVOID = "--exclusive avoids that."
_EXCLUSIVE = (
    "No trial ran beside another one of this sweep on the same machine: with --exclusive each had its machine to "
    "itself."
)
Span = tuple[dt.datetime, dt.datetime]


def side_by_side_fact(manifest: SweepManifest, records: Sequence[TrialRecord]) -> str:
    """One or two sentences; empty where nothing ran at the same time and nobody asked for that. What `--exclusive` has
    asked for is always told."""
    beside = trials_beside_others(records)
    if beside:
        return (
            f"{formats.count(beside)} of {formats.plural(len(records), 'trial')} ran beside another one of this sweep "
            f"on the same machine. {'Others were measured with --exclusive.' if manifest.exclusive else _AVOID}"
        )
    return _EXCLUSIVE if manifest.exclusive else ""


def trials_beside_others(records: Sequence[TrialRecord]) -> int:
    """How many of the trials overlapped with another one on the same host, for any time."""
    by_host: defaultdict[str, list[Span]] = defaultdict(list)
    for record in records:
        if record.host is not None and record.started_at is not None and record.ended_at is not None:
            by_host[record.host].append((record.started_at, record.ended_at))
    return sum(_overlapping(sorted(spans)) for spans in by_host.values())


def _overlapping(spans: Sequence[Span]) -> int:
    """How many of `spans`, in the order of their starts, overlap with an earlier or a later one."""
    found: set[int] = set()
    longest = 0  # of those so far, the place of the one that ends last
    for place in range(1, len(spans)):
        if spans[place][0] < spans[longest][1]:
            found |= {place, longest}
        if spans[place][1] > spans[longest][1]:
            longest = place
    return len(found)
