"""The verdict in words: what is best, by how much, and how sure that is. Never surer than what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvray.analysis import Analysis
from kvray.analysis.choice import Reason
from kvray.analysis.confidence import DISTURBED_RUNS_WORTH_A_NOTE, Confidence, confirmed_gains
from kvray.analysis.evidence import TTFT
from kvray.analysis.modes import Modes
from kvray.analysis.ranking import RankedCandidate, Ranking, UnrankedTrial
from kvray.candidate import CacheStrategy
from kvray.record import TrialRecord, TrialResult, TrialStatus
from kvray.report import formats
from kvray.report.attempts import attempt_notes, incomplete_prefix
from kvray.report.disturbances import disturbances
from kvray.report.listing import NearestMiss
from kvray.report.rows import NEVER, Row, label_of
from kvray.report.searching import open_question
from kvray.report.stats import NOTICEABLE, Stat, in_noise, memory, speed, winner_stats
from kvray.store.manifest import SweepManifest


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What a reader in a hurry takes away.

    Attributes:
        sentence: the verdict.
        confidence: how sure it is and what that rests on; empty when nothing is ranked.
        notes: interruption, sessions, what the engine says of the model, disturbances, loss, ties, processes of two
            kinds, break-even, no steady state, a missing baseline: one sentence each.
        stats: of the winner; empty when nothing is ranked.
    """

    sentence: str
    confidence: str
    notes: tuple[str, ...]
    stats: tuple[Stat, ...]


def headline(
    manifest: SweepManifest,
    results: Sequence[TrialResult],
    analysis: Analysis,
    rows: Sequence[Row],
    nearest: Sequence[NearestMiss],
    set_aside: Sequence[TrialResult] = (),
) -> Headline:
    """The headline of a sweep; of one that did not come to its end, it begins with that."""
    told = _headline(manifest, results, analysis, rows, nearest)
    return replace(
        told,
        sentence=f"{incomplete_prefix(manifest, results)}{_disturbed_prefix(rows, results)}{told.sentence}",
        notes=(
            *attempt_notes(manifest, results, set_aside),
            *map(formats.clean_line, manifest.model_notes),
            *told.notes,
        ),
    )


def _headline(
    manifest: SweepManifest,
    results: Sequence[TrialResult],
    analysis: Analysis,
    rows: Sequence[Row],
    nearest: Sequence[NearestMiss],
) -> Headline:
    if nearest:
        return Headline(sentence=_limits_missed(nearest[0]), confidence="", notes=_disturbance_note(results), stats=())
    baseline_note = _baseline_note(manifest.baseline_id, analysis.ranking)
    if not rows:
        return Headline(
            sentence=_nothing_ranked(analysis.ranking, results), confidence="", notes=baseline_note, stats=()
        )
    winner, baseline = rows[0], analysis.ranking.baseline
    return Headline(
        sentence=_verdict(
            rows,
            baseline,
            analysis.confidence,
            profile=formats.clean_line(manifest.profile.name),
            is_cut_short=_is_cut_short(analysis.ranking),
        ),
        confidence=confidence_sentence(
            analysis.confidence,
            ranked=len(rows),
            stopped=_count(analysis.ranking, TrialStatus.STOPPED),
            skipped=_count(analysis.ranking, TrialStatus.SKIPPED),
            single=_measured_once(rows),
        ),
        notes=(
            *_disturbance_note(results),
            *_loss_note(analysis.ranking.winner.record),
            *_tie_note(rows, analysis.confidence),
            *_modes_notes(rows, analysis.confidence),
            *_break_even_note(winner),
            *_warm_up_note(analysis.ranking.winner),
            *_open_note(manifest, results),
            *baseline_note,
        ),
        stats=winner_stats(winner, baseline.metrics if baseline else None, analysis.confidence),
    )


def _is_cut_short(ranking: Ranking) -> bool:
    statuses = [one.record.status for one in ranking.unranked]
    return TrialStatus.SKIPPED in statuses and not any(status.was_launched for status in statuses)


def confidence_sentence(
    confidence: Confidence | None, *, ranked: int, stopped: int = 0, skipped: int = 0, single: Sequence[str] = ()
) -> str:
    """How sure the ranking is, what that rests on, and whom it leaves out.

    Args:
        single: labels of those among winner, ties and baseline that one process measured, where others had more.
    """
    if ranked == 1:
        return "There is only one candidate in the ranking, so nothing to compare it with."
    if confidence is None:
        return "How sure this order is was not computed."
    return f"{_claim(confidence)} {_basis(confidence, single)}{_left_out(stopped, skipped)}"


def _claim(confidence: Confidence) -> str:
    if confidence.is_disturbed:
        return "How sure this order is cannot be said, because too many runs were disturbed."
    return (
        f"Confidence {_counted_share(confidence.winner_share, confidence)}: the winner is the best in that share of "
        f"{formats.plural(confidence.replicates, 'replicate')} of what the measurements leave possible; in "
        f"{_counted_share(confidence.near_share, confidence)} nothing is better by more than 2 %."
    )


def _counted_share(share: float, confidence: Confidence) -> str:
    """All of so many replicates is not certainty."""
    return formats.share(min(share, 1 - 1 / confidence.replicates))


def _left_out(stopped: int, skipped: int) -> str:
    counted = ((stopped, "stopped early"), (skipped, "not launched"))
    parts = [f"the {formats.count(number)} {what}" for number, what in counted if number]
    return f" It says nothing of {formats.listed(parts)}." if parts else ""


def _basis(confidence: Confidence, single: Sequence[str]) -> str:
    runs = formats.plural(confidence.runs, "timed run")
    if single:
        return (
            f"{formats.listed(single)} ran in one process only, so how much {_its(single)} processes differ is assumed "
            f"from the others', not measured; the least measured cell has {runs}.{_rounds(confidence)}"
        )
    if confidence.assumed_process_noise:
        return (
            f"Repeats come from one process (at least {runs} of each cell), so the spread between processes is "
            "only assumed, not measured."
        )
    basis = (
        f"The winner, what ties with it and the baseline were each measured in at least "
        f"{confidence.processes} fresh processes, with {runs} of each cell or more."
    )
    return f"{basis}{_rounds(confidence)}"


def _rounds(confidence: Confidence) -> str:
    if not confidence.confirm_rounds:
        return ""
    rounds = formats.plural(confidence.confirm_rounds, "confirming round")
    return (
        f" The winner's gains come from {rounds}, in which it and the baseline ran one after the other"
        f"{_gain_intervals(confidence)}."
    )


def _gain_intervals(confidence: Confidence) -> str:
    ttft, throughput = confidence.ttft_gain, confidence.throughput_gain
    if ttft is None or throughput is None:
        return ""
    return (
        f"; with 95 % probability they are {formats.gain(ttft.low)} to {formats.gain(ttft.high)} for the first token, "
        f"{formats.gain(throughput.low)} to {formats.gain(throughput.high)} for tok/s"
    )


def _its(labels: Sequence[str]) -> str:
    return "its" if len(labels) == 1 else "their"


def _measured_once(rows: Sequence[Row]) -> tuple[str, ...]:
    """Of winner, ties and baseline, those with one process while another has more."""
    compared = [row for row in rows if row.is_winner or row.is_tied or row.is_baseline]
    once = tuple(row.label for row in compared if row.processes == 1)
    return once if len(once) < len(compared) else ()


def _count(ranking: Ranking, status: TrialStatus) -> int:
    return sum(one.record.status is status for one in ranking.unranked)


def _limits_missed(nearest: NearestMiss) -> str:
    return f"No candidate keeps the limits. {nearest.label} comes nearest: {nearest.misses}."


def _nothing_ranked(ranking: Ranking, results: Sequence[TrialResult]) -> str:
    statuses = [trial.record.status for trial in ranking.unranked]
    launched = sum(status.was_launched for status in statuses)
    if not launched:
        return "Nothing was measured: no candidate was launched."
    failed = sum(status.is_failure for status in statuses)
    if failed == launched:
        who = "the one trial" if launched == 1 else f"all {launched} trials"
        return f"Nothing could be ranked: {who} that ran failed."
    lost = sum(one.has_lost_its_runs and not one.record.status.is_failure for one in results)
    parts = (
        (failed, "failed"),
        (lost, "are without their raw runs, which are missing or cannot be read"),
        (launched - failed - lost, "lack a complete measurement"),
    )
    told = formats.listed([f"{number} {what}" for number, what in parts if number])
    return f"Nothing could be ranked: of {formats.plural(launched, 'launched trial')}, {told}."


def _verdict(
    rows: Sequence[Row],
    baseline: RankedCandidate | UnrankedTrial | None,
    confidence: Confidence | None,
    *,
    profile: str,
    is_cut_short: bool = False,
) -> str:
    """`is_cut_short`: nothing but what is ranked was launched, though there was more."""
    winner = rows[0]
    if winner.is_baseline:
        if len(rows) == 1:
            what = "measured" if is_cut_short else "that could be ranked"
            return f"{winner.label}, the baseline, is the only candidate {what} for {profile}."
        if confidence is not None and confidence.choice.reason is not Reason.BEST:
            return f"Nothing clearly beats the baseline here: {winner.label} is kept for {profile}."
        return f"Nothing beats the baseline here: {winner.label} is the best of {len(rows)} for {profile}."
    place = _place(rows, confidence, profile)
    if baseline is None or winner.ttft_gain is None or winner.throughput_gain is None:
        return (
            f"{winner.label} is {place}: first token in {formats.quantity(winner.ttft_ms)} ms, "
            f"{formats.quantity(winner.decode_tok_s)} tok/s."
        )
    if any(row.is_baseline and row.is_tied for row in rows):
        return f"No clear gain here: {winner.label} ranks first but cannot be told apart from the baseline."
    ttft, throughput = confirmed_gains(confidence) or (winner.ttft_gain, winner.throughput_gain)
    gains = _gains(ttft, throughput, winner.memory_saved, confidence)
    return f"{winner.label} is {place}: {formats.listed(gains)} compared with the baseline {label_of(baseline.record)}."


def _gains(ttft: float, throughput: float, saved: float | None, confidence: Confidence | None) -> list[str]:
    ttft_between, throughput_between = (confidence.ttft_gain, confidence.throughput_gain) if confidence else (None,) * 2
    gains = [
        "first token no different within noise" if in_noise(ttft_between) else f"first token {speed(ttft)}",
        "tok/s no different within noise" if in_noise(throughput_between) else f"{formats.gain(throughput)} tok/s",
    ]
    if saved is not None and abs(saved) >= NOTICEABLE:
        gains.append(memory(saved))
    return gains


def _place(rows: Sequence[Row], confidence: Confidence | None, profile: str) -> str:
    if len(rows) == 1:
        return "the only candidate that could be ranked"
    winner = rows[0]
    is_fastest = winner.ttft_ms <= min(row.ttft_ms for row in rows) and winner.decode_tok_s >= max(
        row.decode_tok_s for row in rows
    )
    is_clear = confidence is None or not (in_noise(confidence.ttft_gain) or in_noise(confidence.throughput_gain))
    place = "fastest here" if is_fastest and is_clear else f"best here for {profile}"
    return f"among the {place}" if any(row.is_tied for row in rows) else place


def _disturbed_prefix(rows: Sequence[Row], results: Sequence[TrialResult]) -> str:
    """Begins a verdict whose figures are not to be trusted: who reads no further must know it."""
    found = disturbances(results)
    return f"Disturbed ({found.counted}): " if rows and found.share > DISTURBED_RUNS_WORTH_A_NOTE else ""


def _disturbance_note(results: Sequence[TrialResult]) -> tuple[str, ...]:
    found = disturbances(results)
    if found.share <= DISTURBED_RUNS_WORTH_A_NOTE:
        return ()
    if found.reason is None:
        what = f"Other programs kept the machine busy in {found.counted}"
    else:
        what = f"The environment changed in {found.counted} (most often: {found.reason})"
    return (f"{what}: these figures are not to be trusted; measure again when it is quiet.",)


def _open_note(manifest: SweepManifest, results: Sequence[TrialResult]) -> tuple[str, ...]:
    question = open_question(manifest, results)
    return (question,) if question else ()


def _loss_note(record: TrialRecord) -> tuple[str, ...]:
    """A cache that forgets or rounds is never recommended without saying so."""
    if not record.cache.is_lossy:
        return ()
    how = (
        "forgets the middle of a long text" if record.cache is CacheStrategy.SLIDING_WINDOW else "rounds what it keeps"
    )
    if record.kl_mean is None or record.top1_agreement is None:
        return (f"Its cache {how}; what that does to the output was not measured.",)
    return (
        f"Its cache {how}: KL {formats.small(record.kl_mean)} nats per token against the baseline, the same first "
        f"choice at {formats.precise_share(record.top1_agreement)} of tokens. "
        "Name other caches with --cache to leave it out.",
    )


def _warm_up_note(winner: RankedCandidate) -> tuple[str, ...]:
    if winner.record.warmed_up is not False:
        return ()
    return ("Its warm-up ended before two successive runs agreed: what was measured may not be its steady state.",)


def _tie_note(rows: Sequence[Row], confidence: Confidence | None) -> tuple[str, ...]:
    tied = [row for row in rows if row.is_tied]
    if len(tied) < 2 or confidence is None:
        return ()
    names = formats.listed([row.label for row in tied])
    led = next((row for row in tied if row.candidate_id == confidence.choice.over), tied[0])
    return (f"{names} cannot be told apart on this machine{_preference(tied, led, confidence.choice.reason)}.",)


def _preference(tied: Sequence[Row], led: Row, reason: Reason) -> str:
    """Why the first of `tied` is recommended although another one `led`; else which of them is the leanest."""
    chosen = tied[0]
    than = "" if len(tied) == 2 else f" than {led.label}, which measured best"
    if reason is Reason.SIMPLER:
        return f"; {chosen.label} is the simpler" if len(tied) == 2 else f"; {chosen.label} is simpler{than}"
    if reason is Reason.LEANER and chosen.peak_mib is not None and led.peak_mib is not None:
        return f"; {chosen.label} uses {(1 - chosen.peak_mib / led.peak_mib) * 100:.0f} % less memory{than}"
    return _leanest(tied)


def _modes_notes(rows: Sequence[Row], confidence: Confidence | None) -> tuple[str, ...]:
    labels = {row.candidate_id: row.label for row in rows}
    modes = confidence.modes if confidence else ()
    return tuple(_modes_note(labels[one.candidate_id], one) for one in modes if one.candidate_id in labels)


def _modes_note(label: str, modes: Modes) -> str:
    what, unit = ("first token", "ms") if modes.metric == TTFT else ("throughput", "tok/s")
    low, high = formats.quantity(modes.low), formats.quantity(modes.high)
    return (
        f"Processes of {label} fall into two groups: {what} of {low} {unit} "
        f"({modes.processes[0]} of them) or {high} {unit} ({modes.processes[1]}); its mean is neither."
    )


def _leanest(tied: Sequence[Row]) -> str:
    peaks = sorted((row.peak_mib, row.label) for row in tied if row.peak_mib is not None)
    if len(peaks) < len(tied):
        return ""
    (least, label), (most, _) = peaks[0], peaks[-1]
    saved = 1 - least / most
    if saved < NOTICEABLE:
        return "; they use the same memory"
    if len(tied) == 2:
        return f"; {label} uses {saved * 100:.0f} % less memory"
    return f"; {label} uses the least memory, {formats.quantity(least)} MiB"


def _break_even_note(winner: Row) -> tuple[str, ...]:
    if winner.is_baseline or (winner.break_even_tokens or 0) < 1 or winner.pays_after == NEVER:
        return ()
    tokens = formats.rounded_count(winner.break_even_tokens or 0)
    noun = "token" if tokens == "1" else "tokens"
    return (f"It starts slower than the baseline and pays after {tokens} generated {noun}.",)


def _baseline_note(baseline_id: str, ranking: Ranking) -> tuple[str, ...]:
    if any(entry.record.candidate_id == ranking.baseline_id for entry in ranking.entries):
        return ()
    for trial in ranking.unranked:
        if trial.record.candidate_id == (ranking.baseline_id or baseline_id):
            so = "but still what gains are against" if ranking.baseline else "so there is nothing to compare with"
            reason = formats.clean_line(trial.reason).rstrip(".")
            return (f"The baseline {label_of(trial.record)} is not ranked ({reason}), {so}.",)
    return ("The baseline was not measured, so there is nothing to compare with.",)
