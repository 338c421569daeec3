"""What is listed and not ranked: failed, stopped, rejected and skipped trials, grouped by how they ended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from kvray.analysis.misses import nearest_misses
from kvray.analysis.ranking import Ranking, UnrankedTrial
from kvray.record import Role, TrialRecord, TrialStatus
from kvray.report.formats import clean, clean_line
from kvray.report.rows import label_of
from kvray.store.manifest import SweepManifest
from kvray.workload import Limits

_TITLES = {
    TrialStatus.OK: ("Measured, not ranked", "Ran to the end, but lacks a cell or a figure that others have."),
    TrialStatus.OOM: ("Out of memory", "Needed more memory than the device had."),
    TrialStatus.TIMEOUT: ("Timed out", "A phase took longer than allowed; the process was ended."),
    TrialStatus.CRASHED: ("Crashed", "The process died by a signal or an exit code."),
    TrialStatus.UNSUPPORTED: ("Not supported", "The engine refused it."),
    TrialStatus.SUBSTITUTED: (
        "Substituted",
        "Something other than what was asked for ran, so its figures do not count.",
    ),
    TrialStatus.QUALITY: ("Quality too low", "Its output differs from the reference by more than the limit allows."),
    TrialStatus.ERROR: ("Error", "Ended by an unexpected error."),
    TrialStatus.STOPPED: ("Stopped early", "Was behind the others at an early rung, so the time went to better ones."),
    TrialStatus.INTERRUPTED: (
        "Interrupted",
        "Was running when the sweep was interrupted; --resume measures it again.",
    ),
    TrialStatus.REJECTED: ("Rejected before launch", "A rule or the forecast excluded it; no process was started."),
    TrialStatus.SKIPPED: (
        "Not launched",
        "No process was started: it was too unlikely to win, or the search had to end.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class ListedTrials:
    """Candidates that share one reason, and the last lines that the first one with a log printed."""

    labels: tuple[str, ...]
    reason: str
    log_tail: str | None


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A value that the engine knows and the sweep did not try, and why."""

    axis: str
    value: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class NearestMiss:
    """A candidate that comes close to the limits, and by what it misses them."""

    label: str
    misses: str


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A candidate that the search did not launch, and what its model expects of it.

    Attributes:
        low, high: 95 % interval of its score over that of the best one measured.
        chance: probability that it beats that one by more than 2 %.
    """

    label: str
    ttft_ms: float
    decode_tok_s: float
    peak_mib: float | None
    low: float
    high: float
    chance: float


@dataclass(frozen=True, kw_only=True)
class StatusGroup:
    """All unranked trials of one status."""

    status: str
    title: str
    meaning: str
    count: int
    is_failure: bool
    items: tuple[ListedTrials, ...]


def left_out(manifest: SweepManifest) -> tuple[LeftOut, ...]:
    """What the sweep did not try, in the order of the engine's menu."""
    return tuple(
        LeftOut(axis=clean_line(axis), value=clean_line(value), reason=clean_line(reason))
        for axis, value, reason in manifest.left_out
    )


def nearest(ranking: Ranking, limits: Limits) -> tuple[NearestMiss, ...]:
    """The nearest misses; empty where something is ranked, because nobody asks for them beside a winner."""
    if ranking.entries:
        return ()
    return tuple(NearestMiss(label=_name(near.record), misses=near.text) for near in nearest_misses(ranking, limits))


def skipped_candidates(unranked: Sequence[UnrankedTrial]) -> tuple[Skipped, ...]:
    """The candidates not launched for which the search's model made a prediction, the likeliest to win first."""
    found = [
        Skipped(
            label=_name(one),
            ttft_ms=one.expected_ttft_ms,
            decode_tok_s=one.expected_decode_tok_s,
            peak_mib=one.expected_peak_mib,
            low=one.expected_score_low,
            high=one.expected_score_high,
            chance=one.win_chance,
        )
        for one in (trial.record for trial in unranked)
        if one.expected_ttft_ms is not None
        and one.expected_decode_tok_s is not None
        and one.expected_score_low is not None
        and one.expected_score_high is not None
        and one.win_chance is not None
    ]
    return tuple(sorted(found, key=lambda one: (-one.chance, -one.high)))


def status_groups(unranked: Sequence[UnrankedTrial]) -> tuple[StatusGroup, ...]:
    """Groups in the order of interest: measured, failures, stopped, never launched. Equal reasons are merged.

    What has a table of its own is not listed again: candidates that miss a limit, and the `skipped_candidates`.
    """
    listed = [trial for trial in unranked if trial.record.win_chance is None and not trial.misses]
    groups = []
    for status, (title, meaning) in _TITLES.items():
        trials = [trial for trial in listed if trial.record.status is status]
        if trials:
            groups.append(
                StatusGroup(
                    status=status.value,
                    title=title,
                    meaning=meaning,
                    count=len(trials),
                    is_failure=status.is_failure,
                    items=_merge(trials),
                )
            )
    return tuple(groups)


def _log_of(record: TrialRecord) -> str:
    """What the trial printed last. A verdict on its quality or its kernel is no fault that a log would explain."""
    explains = record.status not in (TrialStatus.QUALITY, TrialStatus.SUBSTITUTED)
    return clean(record.log_tail or "").strip("\n") if explains else ""


def _merge(trials: Sequence[UnrankedTrial]) -> tuple[ListedTrials, ...]:
    same: dict[str, list[TrialRecord]] = defaultdict(list)
    for trial in trials:
        same[clean_line(trial.reason)].append(trial.record)
    return tuple(
        ListedTrials(
            labels=tuple(map(_name, records)),
            reason=reason,
            log_tail=next(filter(None, map(_log_of, records)), None),
        )
        for reason, records in same.items()
    )


def _name(record: TrialRecord) -> str:
    role = {Role.BASELINE: " (baseline)", Role.CONFIRM: " (confirming process)"}.get(record.role, "")
    return f"{label_of(record)}{role}"
