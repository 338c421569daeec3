"""What a reader of the verdict must be careful of: disturbances, loss, ties, a slow start, no steady state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvray.analysis import Analysis
from kvray.analysis.bimodality import Bimodality
from kvray.analysis.choice import Reason
from kvray.analysis.confidence import Confidence
from kvray.analysis.engine_best import unlike_weights
from kvray.analysis.evidence import TTFT
from kvray.analysis.limits import is_loss_in_doubt, kept_limits
from kvray.analysis.pareto import MEMORY_STEP
from kvray.analysis.ranking import RankedCandidate, Ranking
from kvray.candidate import CacheStrategy
from kvray.judgement import Limits
from kvray.ratios import MISSING, leaner_text, memory_text
from kvray.record import TrialRecord, TrialResult
from kvray.report import formats
from kvray.report.attempts import attempt_notes
from kvray.report.disturbances import Disturbances
from kvray.report.listing import NearestMiss
from kvray.report.rows import NEVER, Row, label_of
from kvray.report.searching import open_question
from kvray.report.stats import gain_phrases
from kvray.store.manifest import CodeCheck, CodeOutcome, SweepManifest

LOSS_WORTH_A_NOTE = 0.01
"""Nats per token. In benchmarks/quality.py bfloat16 in place of float32 costs 0.0015, a cache in 4 bits 0.016."""
MUCH_OF_A_TOKEN = 0.05
"""Share of a token's time from which on the processors of its scores are told."""


def notes(
    manifest: SweepManifest,
    results: Sequence[TrialResult],
    analysis: Analysis,
    rows: Sequence[Row],
    nearest: Sequence[NearestMiss],
    set_aside: Sequence[TrialResult],
    disturbed: Disturbances,
) -> tuple[str, ...]:
    """The notes under the verdict, the most important first."""
    ranking = analysis.ranking
    return (
        *attempt_notes(manifest, results, set_aside),
        *map(formats.clean_line, manifest.model_notes),
        *map(formats.clean_line, filter(None, [unlike_weights(manifest, ranking)])),
        *_processors_note(results),
        *_disturbance_note(disturbed, manifest, has_figures=bool(rows or nearest)),
        *(_winner_notes(manifest, results, analysis, rows) if rows else ()),
        *(() if nearest else _baseline_note(manifest.baseline_id, ranking)),
    )


def _winner_notes(
    manifest: SweepManifest, results: Sequence[TrialResult], analysis: Analysis, rows: Sequence[Row]
) -> Iterator[str]:
    winner, confidence = analysis.ranking.winner, analysis.confidence
    yield from _code_note(manifest.code_check_of(winner.record.candidate_id))
    yield from _limits_note(winner, manifest.profile.limits)
    yield from _uncompared_note(manifest, winner.record)
    yield from _loss_note(winner.record)
    yield from _doubtful_loss_note(winner.record, manifest.profile.limits)
    if confidence is not None:
        yield from _no_gain_note(rows, confidence)
        yield from _order_note(rows, confidence)
        yield from _tie_note(rows, confidence)
        yield from _surer_note(rows, confidence)
        yield from _modes_notes(rows, confidence.modes)
    yield from _break_even_note(rows[0])
    yield from _warm_up_note(winner)
    if question := open_question(manifest, results):
        yield question


def _disturbance_note(found: Disturbances, manifest: SweepManifest, *, has_figures: bool) -> Iterator[str]:
    if not has_figures or not found.decides:
        return
    if found.reason is None:
        what = f"Other programs kept the machine busy in {found.counted}"
    else:
        what = f"{found.counted} were disturbed (most often: {found.reason})"
    yield f"{what}. Do not trust these figures. {found.advice(manifest)}"


def _code_note(check: CodeCheck | None) -> Iterator[str]:
    if check is not None and check.outcome in (CodeOutcome.DIFFERS, CodeOutcome.FAILED):
        yield formats.clean_line(check.text)


def _limits_note(winner: RankedCandidate, limits: Limits) -> Iterator[str]:
    """The table shows means over the cells, and a limit must hold in every one."""
    if kept := kept_limits(winner.record, winner.cells, limits):
        yield f"{label_of(winner.record)} keeps the limits in every cell. The worst: {'; '.join(kept)}."


def _processors_note(results: Sequence[TrialResult]) -> Iterator[str]:
    """The checkpoint's own settings may cost more than any cache saves."""
    dearest = max((one.record for one in results), key=lambda record: record.processor_share or 0.0, default=None)
    if dearest is None or dearest.processors is None or (dearest.processor_share or 0.0) <= MUCH_OF_A_TOKEN:
        return
    names, share = formats.listed(dearest.processors.split(" + ")), formats.share(dearest.processor_share)
    yield (
        f"The model's generation_config.json sets {names}: that takes up to {share} of "
        "the time of every token, in a plain generate() as in every candidate."
    )


def _uncompared_note(manifest: SweepManifest, record: TrialRecord) -> Iterator[str]:
    """Another engine may have been given another model."""
    if record.candidate.engine == manifest.engine or record.kl_mean is not None:
        return
    why = formats.clean_line(record.quality_note or "its engine tells nothing").rstrip(".")
    yield f"The output of {label_of(record)} was not compared with that of {manifest.engine}: {why}."


def _loss_note(record: TrialRecord) -> Iterator[str]:
    """A cache that forgets or rounds is never recommended without saying so, and neither is anything else, such as a
    setting of an engine's own, that was measured to change the output."""
    how = None
    if record.cache.is_lossy:
        forgets = record.cache is CacheStrategy.SLIDING_WINDOW
        does = "forgets the middle of a long text" if forgets else "rounds what it keeps"
        how = f"The cache of {label_of(record)} {does}"
    if record.kl_mean is None or record.top1_agreement is None:
        if how is not None:
            yield f"{how}; what that does to the output was not measured."
        return
    if how is None and record.kl_mean < LOSS_WORTH_A_NOTE:
        return
    hint = " To leave it out, name other caches with --cache." if record.cache.is_lossy else ""
    loss = formats.bounded(record.kl_mean, record.kl_upper)
    yield (
        f"{how or f'The output of {label_of(record)} differs from the baseline'}: KL {loss} nats per token against the "
        f"baseline, the same first choice at {formats.precise_share(record.top1_agreement)} of tokens.{hint}"
    )


def _doubtful_loss_note(record: TrialRecord, limits: Limits) -> Iterator[str]:
    if limits.max_quality_loss is None or not is_loss_in_doubt(record, limits):
        return
    yield (
        f"{label_of(record)} is not shown to keep the limit of quality: its engine tells the most probable tokens "
        f"only, so the loss is between {formats.small(record.kl_mean)} and {formats.small(record.kl_upper)} nats per "
        f"token. The limit is {formats.small(limits.max_quality_loss)}."
    )


def _no_gain_note(rows: Sequence[Row], confidence: Confidence) -> Iterator[str]:
    led = _row(rows, confidence.choice.over)
    if confidence.choice.reason is not Reason.NO_GAIN or led is None or led.gain is None:
        return
    if led.score <= rows[0].score:
        return
    gains = formats.listed(gain_phrases(led.gain, with_intervals=True))
    if led.gain.is_better_in_something:
        yield f"{led.label} {_measured_best(led, rows)}: {gains}. Taken together that may be chance."
    else:
        rounds = "in the confirming rounds, side by side with it, " if led.gain.pairs else ""
        yield (
            f"{led.label} has a higher score than the baseline, which counts all processes. But {rounds}nothing of it "
            f"was better: {gains}."
        )


def _measured_best(led: Row, rows: Sequence[Row]) -> str:
    """What the one that leads in the resamplings may be called beside the printed scores."""
    return "measured best" if led.score >= max(row.score for row in rows) else "led in the resamplings"


def _order_note(rows: Sequence[Row], confidence: Confidence) -> Iterator[str]:
    """A winner by the resamplings that has not the highest score in the table."""
    higher = max(rows, key=lambda row: row.score)
    if confidence.choice.reason is not Reason.BEST or formats.score(higher.score) == formats.score(rows[0].score):
        return
    yield (
        f"{higher.label} has the highest score, which counts all processes alike. {rows[0].label} comes first because "
        "it led in the resamplings, which compare what ran in the same confirming round."
    )


def _tie_note(rows: Sequence[Row], confidence: Confidence) -> Iterator[str]:
    tied = [row for row in rows if row.is_tied]
    if len(tied) < 2 or confidence.choice.reason is Reason.NO_GAIN:
        return
    names, chosen = formats.listed([row.label for row in tied]), tied[0]
    ratios = [(row.label, row.score_ratio) for row in tied[1:] if row.score_ratio is not None]
    scores = formats.listed([f"{label} scores {one.low:.2f} to {one.high:.2f}" for label, one in ratios])
    told = f": {scores} times as high as {chosen.label} (95 % interval)" if ratios else ""
    yield (
        f"{names} cannot be told apart here{told}."
        f"{_preference(rows, _row(rows, confidence.choice.over), confidence.choice.reason)}"
    )


def _preference(rows: Sequence[Row], led: Row | None, reason: Reason) -> str:
    """Why the first is recommended although another one `led`; else which of the ties needs the least memory."""
    tied = [row for row in rows if row.is_tied]
    chosen = tied[0]
    if led is None or reason not in (Reason.SIMPLER, Reason.LEANER):
        return _leanest(tied)
    than = f"{led.label}, which {_measured_best(led, rows)}" if len(tied) > 2 else led.label
    if reason is Reason.SIMPLER or not chosen.peak_mib or not led.peak_mib:
        return f" {chosen.label} is recommended because it is simpler than {than}."
    less = leaner_text(chosen.peak_mib / led.peak_mib)
    return f" {chosen.label} is recommended because it needs {less} {than}."


def _leanest(tied: Sequence[Row]) -> str:
    peaks = sorted((row.peak_mib, row.label) for row in tied if row.peak_mib is not None)
    if len(peaks) < len(tied) or peaks[0][0] > (1 - MEMORY_STEP) * peaks[-1][0]:
        return ""
    (least, label), (most, _) = peaks[0], peaks[-1]
    if len(tied) == 2:
        return f" {label} needs {memory_text(least / most)}."
    return f" {label} needs the least memory, {formats.quantity(least)} MiB."


def _surer_note(rows: Sequence[Row], confidence: Confidence) -> Iterator[str]:
    led = _row(rows, confidence.choice.over)
    if confidence.choice.reason is Reason.SURER and led is not None:
        yield f"{led.label} {_measured_best(led, rows)}, but its gain over the baseline may be chance."


def _modes_notes(rows: Sequence[Row], modes: Sequence[Bimodality]) -> Iterator[str]:
    labels = {row.candidate_id: row.label for row in rows}
    yield from (_modes_note(labels[one.candidate_id], one) for one in modes if one.candidate_id in labels)


def _modes_note(label: str, modes: Bimodality) -> str:
    what, unit = ("first token", "ms") if modes.metric == TTFT else ("throughput", "tok/s")
    low, high = formats.quantity(modes.low), formats.quantity(modes.high)
    return (
        f"Processes of {label} fall into two groups: {what} of {low} {unit} ({modes.processes[0]} of them) or "
        f"{high} {unit} ({modes.processes[1]}). The mean of all describes neither."
    )


def _break_even_note(winner: Row) -> Iterator[str]:
    tokens = winner.break_even
    if winner.is_baseline or tokens in (NEVER, MISSING):
        return
    yield (
        f"{winner.label} takes longer to load and warm up than the baseline; that is made up for after {tokens} "
        f"generated {'token' if tokens == '1' else 'tokens'}."
    )


def _warm_up_note(winner: RankedCandidate) -> Iterator[str]:
    if winner.record.warmed_up is False:
        yield (
            f"{label_of(winner.record)} was still becoming faster or slower when its warm-up ended: no two runs in "
            "succession took the same time. In long use its speed may be another one."
        )


def _baseline_note(baseline_id: str, ranking: Ranking) -> Iterator[str]:
    if any(entry.record.candidate_id == ranking.baseline_id for entry in ranking.entries):
        return
    for trial in ranking.unranked:
        if trial.record.candidate_id == (ranking.baseline_id or baseline_id):
            so = "but gains are still against it" if ranking.baseline else "so there is nothing to compare with"
            reason = formats.clean_line(trial.reason).rstrip(".")
            yield f"The baseline {label_of(trial.record)} is not ranked ({reason}), {so}."
            return
    yield "The baseline was not measured, so there is nothing to compare with."


def _row(rows: Sequence[Row], candidate_id: str) -> Row | None:
    return next((row for row in rows if row.candidate_id == candidate_id), None)
