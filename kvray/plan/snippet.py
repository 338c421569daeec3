"""The winner as Python source without kvray: the engine's code under a comment that says what it rests on."""

from __future__ import annotations

import re

from kvray.candidate import Candidate
from kvray.engines.base import ModelRequest
from kvray.engines.registry import get_engine
from kvray.jobs.sent_model import is_sent_model_note
from kvray.plan.plan import GainInterval, Plan, PlannedGain
from kvray.ratios import first_token_text, memory_text, throughput_text

# The first two lines are fixed text: a `coding:` in a model's name there would change how Python reads the file.
_OPENING = ("Written by kvray from measurements. It stands alone: it needs the engine's library, not kvray.", "")

_MODEL_LINE = re.compile(r"^MODEL = ", re.MULTILINE)
_SENT_FROM = "This is the path from which the model was sent to the cluster with --upload-model."
_SENT_MODEL = "This path is the cluster's temporary copy. Put your own path of the model here; the note above names it."


def render_snippet(plan: Plan) -> str:
    """Standalone Python source that applies the plan's winner, with caches sized for its profile's cells. It names the
    model as the user did.

    Raises:
        EngineError: the plan's engine is unknown, or what it needs is not installed.
    """
    winner = pinned_winner(plan)
    body = get_engine(plan.engine).render_snippet(
        winner_request(plan),
        loader=plan.loader,
        candidate=winner,
        device=plan.device,
        cells=plan.profile.cells(winner.batch_size, rung=2),
    )
    header = "".join(_comment_line(line) for line in (*_OPENING, *_evidence(plan)))
    if plan.shown_model != plan.model_id:
        body = _MODEL_LINE.sub(_comment_line(_SENT_FROM) + r"\g<0>", body, count=1)
    elif any(is_sent_model_note(note) and plan.model_id in note for note in plan.notes):
        body = _MODEL_LINE.sub(_comment_line(_SENT_MODEL) + r"\g<0>", body, count=1)
    return f"{header}\n{body.strip()}\n"


def pinned_winner(plan: Plan) -> Candidate:
    """The winner with the threads that it was measured with, where its engine would take others on another machine.

    Raises:
        EngineError: the plan's engine is unknown, or what it needs is not installed.
    """
    winner = plan.winner
    if winner.threads is None:
        return winner.candidate
    return get_engine(plan.engine).with_measured_threads(winner.candidate, winner.threads)


def winner_request(plan: Plan) -> ModelRequest:
    """The model as the user named it for the winner's engine, in the version that was measured."""
    return ModelRequest(
        model_id=plan.shown_model,
        revision=plan.model_revision,
        trust_remote_code=plan.trust_remote_code,
        allow_pickle=plan.allow_pickle,
    )


def gain_text(gain: PlannedGain) -> str:
    """E.g. `first token 2.00× as fast (95 %: 1.80× to 2.20×), the same tok/s within noise (−3 % to +9 %), the same
    memory`, in the words of the report's headline."""
    memory = "" if gain.memory is None else f", {memory_text(1 / (1 + gain.memory))}"
    ttft = first_token_text(1 + gain.ttft, _ends(gain.ttft_interval))
    return f"{ttft}, {throughput_text(1 + gain.throughput, _ends(gain.throughput_interval))}{memory}"


def _evidence(plan: Plan) -> tuple[str, ...]:
    metrics = plan.winner.metrics
    peak = "" if metrics.peak_mib is None else f", peak {metrics.peak_mib:,.0f} MiB"
    return (
        f"Model: {plan.shown_model} ({plan.architecture})",
        f"Winner: {plan.winner.candidate.label}",
        f"Workload: {plan.profile.name}",
        f"Measured: TTFT {metrics.ttft_ms:,.1f} ms, {metrics.decode_tok_s:,.1f} tok/s{peak}",
        *_gain_lines(plan),
        *_confidence_lines(plan),
        *_incomplete_lines(plan),
        *([f"Checked: {plan.code_check.text}"] if plan.code_check else []),
        *(f"Note: {note}" for note in _notes(plan)),
        f"Where: {plan.fingerprint.device_name or 'unknown device'}, {plan.measured_at:%Y-%m-%d}, run {plan.run_id}",
    )


def _notes(plan: Plan) -> tuple[str, ...]:
    """What the plan notes, without what it notes of engines that the code does not use."""
    others = tuple(f"{name}: " for name in plan.engines if name != plan.engine)
    return tuple(
        note
        for note in plan.notes
        if not note.startswith(others) and not (plan.sent_models and is_sent_model_note(note))
    )


def _gain_lines(plan: Plan) -> tuple[str, ...]:
    gain = plan.winner.gain
    if gain is None or plan.baseline is None:
        return ("Gain: unknown, the baseline was not measured completely",)
    if _is_baseline(plan):
        return ("Gain: none, this is the baseline; nothing measured here is clearly better",)
    return (f"Gain over {plan.baseline.candidate.label}: {gain_text(gain)}", *_own_gain_lines(plan))


def _own_gain_lines(plan: Plan) -> tuple[str, ...]:
    """The gain over what the winner's engine does with nothing set, where the baseline is another engine's."""
    own = plan.engines.get(plan.engine)
    if own is None or own.default is None or own.gain is None or plan.baseline is None:
        return ()
    if own.default.candidate in (plan.baseline.candidate, plan.winner.candidate):
        return ()
    return (f"Gain over its engine's own default {own.default.candidate.label}: {gain_text(own.gain)}",)


def _is_baseline(plan: Plan) -> bool:
    return plan.baseline is not None and plan.baseline.candidate == plan.winner.candidate


def _confidence_lines(plan: Plan) -> tuple[str, ...]:
    confidence = plan.winner.confidence
    if confidence is None or _is_baseline(plan):
        return ()
    if confidence.is_disturbed:
        return ("Confidence: none is claimed, because too many runs were disturbed",)
    ties = f", {len(plan.winner.ties)} cannot be told apart from it" if plan.winner.ties else ""
    assumed = " (some ran in one process only, so their spread is assumed)" if confidence.assumed_process_noise else ""
    share = f"{confidence.winner_share * 100:.0f} %"
    return (f"Confidence: it won in {share} of the resampled measurements{ties}{assumed}",)


def _incomplete_lines(plan: Plan) -> tuple[str, ...]:
    if not plan.is_partial:
        return ()
    return ("Incomplete: the sweep was interrupted, and what it did not measure may be better",)


def _ends(interval: GainInterval | None) -> tuple[float, float] | None:
    return None if interval is None else (1 + interval.low, 1 + interval.high)


def _comment_line(text: str) -> str:
    """One comment line: whatever could end it (line breaks, control characters) becomes a space."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return f"# {' '.join(printable.split())}".rstrip() + "\n"
