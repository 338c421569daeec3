"""The winner as Python source without kvray: the engine's code under a comment that says what it rests on."""

from __future__ import annotations

from kvray.engines.base import ModelRequest
from kvray.engines.registry import get_engine
from kvray.plan.plan import GainInterval, Plan

# The first two lines are fixed text: a `coding:` in a model's name there would change how Python reads the file.
_OPENING = ("Written by kvray from measurements. It stands alone: it needs the engine's library, not kvray.", "")


def render_snippet(plan: Plan) -> str:
    """Standalone Python source that applies the plan's winner, sized for the largest cell of its profile.

    Raises:
        EngineError: the plan's engine is unknown, or what it needs is not installed.
    """
    winner = plan.winner.candidate
    body = get_engine(plan.engine).render_snippet(
        ModelRequest(model_id=plan.model_id, revision=plan.model_revision, trust_remote_code=plan.trust_remote_code),
        candidate=winner,
        cell=max(plan.profile.cells(winner.batch_size, rung=2)),
    )
    header = "".join(_comment_line(line) for line in (*_OPENING, *_evidence(plan)))
    return f"{header}\n{body.strip()}\n"


def _evidence(plan: Plan) -> tuple[str, ...]:
    metrics = plan.winner.metrics
    peak = "" if metrics.peak_mib is None else f", peak {metrics.peak_mib:,.0f} MiB"
    return (
        f"Model: {plan.model_id} ({plan.architecture})",
        f"Winner: {plan.winner.candidate.label}",
        f"Workload: {plan.profile.name}",
        f"Measured: TTFT {metrics.ttft_ms:,.1f} ms, {metrics.decode_tok_s:,.1f} tok/s{peak}",
        *_gain_lines(plan),
        *_confidence_lines(plan),
        *_incomplete_lines(plan),
        *(f"Note: {note}" for note in plan.notes),
        f"Where: {plan.fingerprint.device_name or 'unknown device'}, {plan.measured_at:%Y-%m-%d}, run {plan.run_id}",
    )


def _gain_lines(plan: Plan) -> tuple[str, ...]:
    gain = plan.winner.gain
    if gain is None or plan.baseline is None:
        return ("Gain: unknown, the baseline was not measured completely",)
    if plan.baseline.candidate == plan.winner.candidate:
        return ("Gain: none, the winner is the baseline",)
    memory = "" if gain.memory is None else f", {_memory(gain.memory)}"
    return (
        f"Gain over {plan.baseline.candidate.label}: TTFT {gain.ttft:+.1%}{_interval(gain.ttft_interval)}, "
        f"throughput {gain.throughput:+.1%}{_interval(gain.throughput_interval)}{memory}",
    )


def _memory(gain: float) -> str:
    """In the report's words: a share of the baseline's peak."""
    saved = 1 - 1 / (1 + gain)
    return f"{abs(saved):.0%} {'less' if saved >= 0 else 'more'} memory"


def _confidence_lines(plan: Plan) -> tuple[str, ...]:
    confidence = plan.winner.confidence
    if confidence is None:
        return ()
    if confidence.is_disturbed:
        return ("Confidence: none is claimed, because too many runs were disturbed",)
    ties = f", {len(plan.winner.ties)} cannot be told apart from it" if plan.winner.ties else ""
    assumed = " (not all ran in several processes: their spread is assumed)" if confidence.assumed_process_noise else ""
    return (f"Confidence: the best in {confidence.winner_share:.0%} of replicates{ties}{assumed}",)


def _incomplete_lines(plan: Plan) -> tuple[str, ...]:
    return ("Incomplete: the sweep was interrupted, what it did not measure may be better",) if plan.is_partial else ()


def _interval(interval: GainInterval | None) -> str:
    return f" [{interval.low:+.1%}, {interval.high:+.1%}]" if interval else ""


def _comment_line(text: str) -> str:
    """One comment line: whatever could end it (line breaks, control characters) becomes a space."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return f"# {' '.join(printable.split())}".rstrip() + "\n"
