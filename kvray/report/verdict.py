"""The verdict in one sentence: what is best and by how much. Never surer than what was measured."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from kvray.analysis import Analysis
from kvray.analysis.choice import Reason
from kvray.analysis.ranking import Ranking
from kvray.record import TrialResult, TrialStatus
from kvray.report import formats
from kvray.report.attempts import incomplete_prefix
from kvray.report.disturbances import Disturbances
from kvray.report.engines import engine_sentence
from kvray.report.listing import NearestMiss
from kvray.report.rows import Row, label_of
from kvray.report.stats import gain_phrases, in_noise
from kvray.store.manifest import SweepManifest


class Tone(enum.StrEnum):
    """How the verdict is coloured."""

    GOOD = "good"
    NEUTRAL = "neutral"
    DOUBTFUL = "doubtful"
    FAILED = "failed"


def tone(manifest: SweepManifest, rows: Sequence[Row], disturbed: Disturbances) -> Tone:
    """Good is only a gain that was measured completely and undisturbed."""
    if not rows:
        return Tone.FAILED
    if disturbed.decides or manifest.is_complete is False:
        return Tone.DOUBTFUL
    return Tone.NEUTRAL if rows[0].is_baseline or len(rows) == 1 else Tone.GOOD


def verdict(
    manifest: SweepManifest,
    results: Sequence[TrialResult],
    analysis: Analysis,
    rows: Sequence[Row],
    nearest: Sequence[NearestMiss],
    disturbed: Disturbances,
) -> str:
    """The sentence, which begins with what makes it doubtful: interrupted, or disturbed."""
    return (
        f"{incomplete_prefix(manifest, results)}{_disturbed_prefix(disturbed, has_figures=bool(rows or nearest))}"
        f"{_verdict(manifest, results, analysis, rows, nearest)}"
    )


def _verdict(
    manifest: SweepManifest,
    results: Sequence[TrialResult],
    analysis: Analysis,
    rows: Sequence[Row],
    nearest: Sequence[NearestMiss],
) -> str:
    profile = formats.clean_line(manifest.profile.shown_name)
    if nearest:
        return f"No candidate keeps the limits. {nearest[0].label} comes nearest: {nearest[0].misses}."
    if not rows:
        return _nothing_ranked(analysis.ranking, results)
    if rows[0].is_baseline:
        return _baseline_verdict(analysis, rows, profile)
    return f"{_winner_verdict(analysis, rows, profile)}{engine_sentence(analysis.engines, manifest.engine)}"


def _baseline_verdict(analysis: Analysis, rows: Sequence[Row], profile: str) -> str:
    label = rows[0].label
    if len(rows) == 1:
        what = "measured" if _is_cut_short(analysis.ranking) else "that could be ranked"
        return f"{label}, the baseline, is the only candidate {what} for {profile}."
    if analysis.confidence is not None and analysis.confidence.choice.reason is Reason.NO_GAIN:
        return f"No measurable gain for {profile}: keep what you have, the baseline {label}."
    return f"Nothing beats the baseline here: {label} is the best of {len(rows)} for {profile}."


def _winner_verdict(analysis: Analysis, rows: Sequence[Row], profile: str) -> str:
    winner, baseline = rows[0], analysis.ranking.baseline
    place = _place(rows, profile)
    if baseline is None or winner.gain is None:
        return (
            f"{winner.label} is {place}: first token in {formats.quantity(winner.ttft_ms)} ms, "
            f"{formats.quantity(winner.decode_tok_s)} tok/s."
        )
    gains = formats.listed(gain_phrases(winner.gain))
    return f"{winner.label} is {place}: {gains} compared with the baseline {label_of(baseline.record)}."


def _place(rows: Sequence[Row], profile: str) -> str:
    if len(rows) == 1:
        return "the only candidate that could be ranked"
    winner, gain = rows[0], rows[0].gain
    is_fastest = all(_is_as_fast(winner, row) for row in rows)
    is_clear = gain is None or not (in_noise(gain.ttft_interval) or in_noise(gain.throughput_interval))
    place = "fastest here" if is_fastest and is_clear else f"best here for {profile}"
    return f"among the {place}" if any(row.is_tied for row in rows) else place


def _is_as_fast(one: Row, other: Row) -> bool:
    """By the figures of all processes and by the speeds of the confirming rounds, in the first token and in tok/s."""
    by_figures = one.ttft_ms <= other.ttft_ms and one.decode_tok_s >= other.decode_tok_s
    if one.gain is None or other.gain is None:
        return by_figures
    return by_figures and one.gain.ttft >= other.gain.ttft and one.gain.throughput >= other.gain.throughput


def _is_cut_short(ranking: Ranking) -> bool:
    """Whether nothing but what is ranked was launched, though there was more."""
    statuses = [one.record.status for one in ranking.unranked]
    return TrialStatus.SKIPPED in statuses and not any(status.was_launched for status in statuses)


def _disturbed_prefix(disturbed: Disturbances, *, has_figures: bool) -> str:
    """Begins a verdict whose figures are not to be trusted, for readers who read no further."""
    return f"Uncertain, {disturbed.counted} disturbed: " if has_figures and disturbed.decides else ""


def _nothing_ranked(ranking: Ranking, results: Sequence[TrialResult]) -> str:
    statuses = [trial.record.status for trial in ranking.unranked]
    launched = sum(status.was_launched for status in statuses)
    if not launched:
        return "Nothing was measured: no candidate was launched."
    failed = sum(status.is_failure for status in statuses)
    if failed == launched:
        what = "the one trial" if launched == 1 else f"all {launched} trials"
        return f"Nothing could be ranked: {what} that ran failed."
    lost = sum(one.has_lost_its_runs and not one.record.status.is_failure for one in results)
    parts = (
        (failed, "failed"),
        (lost, f"lost {'its' if lost == 1 else 'their'} raw runs, which are missing or cannot be read"),
        (launched - failed - lost, f"{'lacks' if launched - failed - lost == 1 else 'lack'} a complete measurement"),
    )
    told = formats.listed([f"{number} {what}" for number, what in parts if number])
    return f"Nothing could be ranked: of {formats.plural(launched, 'launched trial')}, {told}."
