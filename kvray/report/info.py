"""`ReportInfo`: what is shown of a sweep, as plain data that can be tested. Rendered by markdown, html and terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from kvray.analysis import Analysis
from kvray.analysis.ranking import Ranking
from kvray.record import Role, TrialResult, TrialStatus, short_model_name
from kvray.report import formats
from kvray.report.cells import CellGrid, cell_grids
from kvray.report.engines import NOTE, EngineRow, engine_rows
from kvray.report.facts import Fact, comparable_facts, environment_facts, method_facts
from kvray.report.headline import Headline, headline
from kvray.report.listing import (
    LeftOut,
    NearestMiss,
    Skipped,
    StatusGroup,
    left_out,
    nearest,
    skipped_candidates,
    status_groups,
)
from kvray.report.missed import MissedRow, missed_rows
from kvray.report.rows import (
    APART,
    UNPAIRED,
    ColdCost,
    Observation,
    Quality,
    Row,
    cold_costs,
    label_of,
    observations,
    qualities,
    ranking_rows,
)
from kvray.store.manifest import SweepManifest

BREAK_EVEN = (
    "Break-even: how many generated tokens make up for a longer load, compilation and warm-up than the baseline's, "
    "by tok/s alone: what a faster first token saves is not counted. A dash stands where there is nothing to make up "
    "for or it cannot be told."
)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many trials there were and how they ended."""

    trials: int
    launched: int
    confirming: int
    ranked: int
    failed: int
    stopped: int
    rejected: int
    skipped: int

    @property
    def sentence(self) -> str:
        """E.g. `14 trials launched, 4 of them to confirm, 7 candidates ranked, 2 failed, 3 rejected before launch.`"""
        parts = [
            f"{formats.plural(self.launched, 'trial')} launched",
            *([f"{formats.count(self.confirming)} of them to confirm"] if self.confirming else []),
            f"{formats.plural(self.ranked, 'candidate')} ranked",
            *(
                f"{formats.count(number)} {what}"
                for number, what in (
                    (self.failed, "failed"),
                    (self.stopped, "stopped early"),
                    (self.rejected, "rejected before launch"),
                    (self.skipped, "not launched by the search"),
                )
                if number
            ),
        ]
        return ", ".join(parts) + "."


@dataclass(frozen=True, kw_only=True)
class FallbackStep:
    """A leaner candidate that ran, for when what stands before it does not fit."""

    label: str
    peak_mib: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """A sweep, its trials, and what they mean."""

    manifest: SweepManifest
    results: Sequence[TrialResult]
    analysis: Analysis


@dataclass(frozen=True, kw_only=True)
class ReportInfo:
    """Everything a report shows. Strings from outside are already cleaned of control characters, not escaped.

    Attributes:
        subtitle: profile, device and time.
        rows: the ranking, best first.
        engines: the best of each engine, where the sweep has several.
        gains_note: what the gains in `rows` are against and what they rest on; empty without a baseline.
        front: (TTFT ms, tok/s) of the rows that no other row beats in both, by rising TTFT: the line of the scatter.
        ranking: what `rows` are made from.
        nearest: what comes closest to the limits, where nothing keeps them; else empty.
        missed: what was measured and misses a limit, nearest first.
        groups: what is listed and not ranked, without what is in `missed` and `skipped`.
        skipped: what the search did not launch, and what its model expects of it.
        left_out: what the engine knows and the sweep did not try.
        source: what all this is made from.
    """

    title: str
    subtitle: str
    run_id: str
    headline: Headline
    counts: Counts
    rows: tuple[Row, ...]
    engines: tuple[EngineRow, ...]
    gains_note: str
    front: tuple[tuple[float, float], ...]
    ranking: Ranking
    fallbacks: tuple[FallbackStep, ...]
    nearest: tuple[NearestMiss, ...]
    missed: tuple[MissedRow, ...]
    groups: tuple[StatusGroup, ...]
    skipped: tuple[Skipped, ...]
    left_out: tuple[LeftOut, ...]
    source: Source

    @cached_property
    def cold(self) -> tuple[ColdCost, ...]:
        """What each candidate costs before it is warm. This and what follows is made when somebody asks for it: a
        terminal shows none of it."""
        return cold_costs(self.source.analysis)

    @cached_property
    def observations(self) -> tuple[Observation, ...]:
        """What was seen to run."""
        return observations(self.source.analysis)

    @cached_property
    def qualities(self) -> tuple[Quality, ...]:
        """How far each candidate's output strays from the reference."""
        return qualities(self.source.analysis)

    @cached_property
    def method(self) -> tuple[Fact, ...]:
        """How it was measured."""
        winner_id = self.rows[0].candidate_id if self.rows else None
        return method_facts(self.source.manifest, self.source.results, winner_id)

    @cached_property
    def environment(self) -> tuple[Fact, ...]:
        """On what it was measured."""
        return environment_facts(self.source.manifest, self.source.results)

    @cached_property
    def comparable(self) -> tuple[Fact, ...]:
        """What must be equal for another sweep to be compared with this one."""
        return comparable_facts(self.source.manifest, self.source.results)

    @property
    def break_even_note(self) -> str:
        """What the column “break-even” means; empty where it has no figures."""
        return BREAK_EVEN if any(row.gain is not None for row in self.rows) else ""

    @property
    def engines_note(self) -> str:
        """What the table of the engines compares; empty where there is one engine."""
        return NOTE if self.engines else ""

    @cached_property
    def grids(self) -> tuple[CellGrid, ...]:
        """First token and throughput, cell by cell."""
        return cell_grids(self.ranking)

    @cached_property
    def ranked_engines(self) -> tuple[str, ...]:
        """Names of the engines in the ranking, the best one's first, where there are several; else empty."""
        names = tuple(dict.fromkeys(row.engine for row in self.rows))
        return names if len(names) > 1 else ()

    @property
    def has_pairs(self) -> bool:
        """Whether the speeds in `rows` are of confirming rounds."""
        return any(row.gain is not None and row.gain.pairs for row in self.rows)

    @property
    def cells_note(self) -> str:
        """What the figures cell by cell rest on, where the ranking's speeds rest on something else."""
        if not self.has_pairs:
            return ""
        return (
            "Figures and speeds are of all processes here, so they may differ from the ranking's speeds, which are of "
            "the confirming rounds alone."
        )

    @property
    def winner(self) -> Row | None:
        """The first row, `None` when nothing is ranked."""
        return self.rows[0] if self.rows else None

    @property
    def baseline(self) -> Row | None:
        """The baseline's row, `None` when it is not ranked."""
        return next((row for row in self.rows if row.is_baseline), None)


def report_info(
    manifest: SweepManifest,
    results: Sequence[TrialResult],
    analysis: Analysis,
    set_aside: Sequence[TrialResult] = (),
) -> ReportInfo:
    """What a report of the sweep shows. Pure: no clock, no file. `set_aside` are trials of other fingerprints."""
    baseline_id = analysis.ranking.baseline_id or manifest.baseline_id
    rows = ranking_rows(analysis, results, manifest.profile, baseline_id)
    near = nearest(analysis.ranking, manifest.profile.limits)
    since = formats.timestamp(manifest.measured_since)
    model = short_model_name(formats.clean_line(manifest.shown_model()))
    profile = formats.clean_line(manifest.profile.shown_name)
    return ReportInfo(
        title=f"KV cache of {model}",
        subtitle=f"{profile} on {formats.clean_line(manifest.device_name)}, {since}",
        run_id=formats.clean_line(manifest.run_id),
        headline=headline(manifest, results, analysis, rows, near, set_aside),
        counts=_counts(results, analysis.ranking),
        rows=rows,
        engines=engine_rows(analysis.engines),
        gains_note=_gains_note(rows),
        front=_front(rows),
        ranking=analysis.ranking,
        fallbacks=tuple(
            FallbackStep(label=label_of(step.record), peak_mib=step.peak_mib, reason=formats.clean_line(step.reason))
            for step in analysis.fallbacks
        ),
        nearest=near,
        missed=missed_rows(analysis.ranking, manifest.profile.limits),
        groups=status_groups(analysis.ranking.unranked),
        skipped=skipped_candidates(analysis.ranking.unranked),
        left_out=left_out(manifest),
        source=Source(manifest=manifest, results=results, analysis=analysis),
    )


def _counts(results: Sequence[TrialResult], ranking: Ranking) -> Counts:
    """A trial that was stopped is not told of a candidate that another process ranked."""
    statuses = Counter(result.record.status for result in results)
    return Counts(
        trials=len(results),
        launched=sum(number for status, number in statuses.items() if status.was_launched),
        confirming=sum(result.record.role is Role.CONFIRM for result in results),
        ranked=len(ranking.entries),
        failed=sum(number for status, number in statuses.items() if status.is_failure),
        stopped=sum(one.record.status is TrialStatus.STOPPED for one in ranking.unranked),
        rejected=statuses[TrialStatus.REJECTED],
        skipped=statuses[TrialStatus.SKIPPED],
    )


def _gains_note(rows: Sequence[Row]) -> str:
    if all(row.gain is None for row in rows):
        return ""
    note = "Speed and memory are compared with the baseline: 2× is twice as fast, 0.33× takes three times as long."
    if not any(row.gain and row.gain.pairs for row in rows):
        return note
    mark = f" {UNPAIRED} marks candidates that were in none; all their processes count instead."
    return (
        f"{note} Speeds come from the confirming rounds, in which a candidate and the baseline ran one after the other."
        f"{mark if any(row.is_unpaired for row in rows) else ''} Score, TTFT and tok/s are of all processes, so "
        f"dividing them gives other values.{_apart_note(rows)}"
    )


def _apart_note(rows: Sequence[Row]) -> str:
    if not any(row.score_is_apart or row.ttft_is_apart or row.throughput_is_apart for row in rows):
        return ""
    return (
        f" {APART} marks speeds that differ from these by more than 2 %, and scores to which the speeds would not "
        "lead: the machine was faster or slower in other processes. Trust the speeds, which compare what ran under the "
        "same conditions."
    )


def _front(rows: Sequence[Row]) -> tuple[tuple[float, float], ...]:
    front: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: (row.ttft_ms, -row.decode_tok_s)):
        if not front or row.decode_tok_s > front[-1][1]:
            front.append((row.ttft_ms, row.decode_tok_s))
    return tuple(front)
