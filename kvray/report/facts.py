"""How it was measured, on what, and how to repeat it: sentences for people, from what the records say."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvray.analysis.limits import is_loss_in_doubt
from kvray.record import TrialRecord, TrialResult
from kvray.report import formats
from kvray.report.attempts import attempts_text, repeating_arguments
from kvray.report.disturbances import disturbances
from kvray.report.rows import label_of
from kvray.report.searching import confirm_fact, forecast_fact, repeats_fact, search_fact
from kvray.report.side_by_side import side_by_side_fact
from kvray.store.manifest import SweepManifest
from kvray.workload import RUNG0_OUTPUT_TOKENS, Limits, WorkloadProfile

MOST_NAMED = 8
"""Candidates that a sentence names."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A name and what is known of it."""

    name: str
    text: str


def method_facts(manifest: SweepManifest, results: Sequence[TrialResult], winner_id: str | None) -> tuple[Fact, ...]:
    """How the figures came about, and what each of them means."""
    records = _launched(results)
    facts = [
        ("Workload", workload_text(manifest.profile)),
        ("Limits", _limits(manifest.profile.limits)),
        ("Dropped contexts", _dropped(manifest)),
        ("Search", search_fact(manifest, results)),
        ("Confirming", confirm_fact(manifest, results)),
        ("Forecast", forecast_fact(results, winner_id)),
        ("Isolation", "Every trial is one candidate in one fresh process, which loads the model and exits."),
        ("Side by side", side_by_side_fact(manifest, records)),
        ("Rungs", f"{_rungs(manifest.profile)}{repeats_fact(manifest)}"),
        ("Warm-up", _warm_up(records)),
        (
            "First token (TTFT)",
            "Time from submitting the prompt until the first token is on the host, as a mean over the sequences of a "
            "batch. The prefill goes through the candidate's own cache.",
        ),
        ("Between tokens (ITL)", "Time between successive tokens of a sequence; the end-of-text token is suppressed."),
        ("Throughput", "(output tokens − 1) × batch size / seconds of decoding."),
        ("Engines", _measured_notes(manifest)),
        ("Peak memory", formats.clean_line(manifest.memory_note)),
        ("Memory of several GPUs", _memory_of_several_gpus(records)),
        ("Energy", _energy(records)),
        ("Aggregation", "Median of a cell's undisturbed runs, then the geometric mean over the profile's cells."),
        ("Score", _score(manifest.profile)),
        ("Quality", _quality(manifest, records)),
        ("Disturbed runs", _disturbed(results)),
        ("Winner's code", _code(manifest, winner_id)),
        ("Scheduling", _scheduling(records)),
        ("Kernels in prefill", _values(record.kernel_prefill for record in records)),
        ("Kernels in decode", _values(record.kernel_decode for record in records)),
        ("Cache classes", _values(record.cache_class for record in records)),
    ]
    return tuple(Fact(name=name, text=text) for name, text in facts if text)


def _measured_notes(manifest: SweepManifest) -> str:
    """What differs by nature between the engines of a sweep."""
    told = {name: note for name, note in manifest.measured_notes.items() if len(manifest.engines) > 1}
    return " ".join(formats.clean_line(f"{name}: {note}") for name, note in told.items())


def _code(manifest: SweepManifest, winner_id: str | None) -> str:
    if winner_id is None:
        return ""
    check = manifest.code_check_of(winner_id)
    return formats.clean_line(check.text) if check else "It was not run to check it."


def environment_facts(manifest: SweepManifest, results: Sequence[TrialResult]) -> tuple[Fact, ...]:
    """Model, machine, versions, and the command that repeats the sweep."""
    records = _launched(results)
    facts = [
        ("Model", formats.clean_line(manifest.shown_model())),
        ("Revision", formats.clean_line(manifest.model_revision)),
        ("Architecture", formats.clean_line(manifest.architecture)),
        ("Models of other engines", _other_models(manifest)),
        ("Engine", formats.clean_line(", ".join(manifest.engines))),
        ("Engine's Python", _engine_pythons(manifest)),
        ("Device", f"{formats.clean_line(manifest.device_name)} ({formats.clean_line(manifest.device)})"),
        ("Host", _values(record.host for record in records)),
        *((fact.name, fact.text) for fact in version_facts(manifest, results)),
        ("Run", formats.clean_line(manifest.run_id)),
        ("Started", formats.timestamp(manifest.measured_since)),
        ("Attempts", attempts_text(manifest)),
        ("Seed", str(manifest.seed)),
        ("Repeat it with", _repeating(manifest)),
    ]
    return tuple(Fact(name=name, text=text) for name, text in facts if text)


def _repeating(manifest: SweepManifest) -> str:
    if manifest.batch_id is not None:
        return formats.clean_line(f"{manifest.command}, with the file of {manifest.batch_id}")
    return formats.clean_line(f"{manifest.command} {shlex.join(repeating_arguments(manifest.arguments))}".strip())


def _other_models(manifest: SweepManifest) -> str:
    """The model as each further engine has it, where that is another file; empty where all have the same."""
    others = {name: one for name, one in manifest.other_engines.items() if one.model_id != manifest.model_id}
    told = (
        f"{manifest.shown_model(one.model_id)} ({name}, revision {one.model_revision})" for name, one in others.items()
    )
    return formats.clean_line(", ".join(told))


def _engine_pythons(manifest: SweepManifest) -> str:
    """The path alone where there is one engine."""
    named = {name: formats.clean_line(path) for name, path in manifest.engine_pythons.items()}
    if len(manifest.engines) == 1:
        return named.get(manifest.engine, "")
    return ", ".join(f"{path} ({formats.clean_line(name)})" for name, path in named.items())


def version_facts(manifest: SweepManifest, results: Sequence[TrialResult]) -> tuple[Fact, ...]:
    """Versions that the figures depend on; several where the records differ."""
    records = _launched(results)
    libraries = {name for record in records for name in record.versions}
    facts = [
        ("Driver", _values(record.driver_version for record in records)),
        *((name, _values(record.versions.get(name) for record in records)) for name in sorted(libraries)),
        ("kvray", formats.clean_line(manifest.kvray_version)),
    ]
    return tuple(Fact(name=name, text=text) for name, text in facts if text)


def comparable_facts(manifest: SweepManifest, results: Sequence[TrialResult]) -> tuple[Fact, ...]:
    """What must be equal for two sweeps to be compared fairly."""
    records = _launched(results)
    facts = [
        ("model", formats.clean_line(manifest.shown_model())),
        ("model revision", formats.clean_line(manifest.model_revision)),
        ("models of other engines", _other_models(manifest)),
        ("engine", formats.clean_line(", ".join(manifest.engines))),
        ("profile", f"{formats.clean_line(manifest.profile.name)}: {workload_text(manifest.profile)}"),
        ("limits", limits_text(manifest.profile.limits)),
        ("score", _score(manifest.profile)),
        ("device", f"{formats.clean_line(manifest.device_name)} ({formats.clean_line(manifest.device)})"),
        ("host", _values(record.host for record in records)),
        ("scheduling", _scheduling(records)),
        ("meaning of peak memory", formats.clean_line(manifest.memory_note)),
        *((f"{fact.name} version", fact.text) for fact in version_facts(manifest, results)),
    ]
    return tuple(Fact(name=name, text=text) for name, text in facts)


def workload_text(profile: WorkloadProfile) -> str:
    """Lengths, batch sizes and repeats in one line."""
    parts = [
        f"prompts of {_numbers(profile.context_lengths)} tokens",
        f"answers of {_numbers(profile.output_lengths)}",
        f"batch size {_numbers(profile.batch_sizes)}",
        f"{formats.plural(profile.repeats, 'run')} of each cell",
    ]
    return "; ".join(parts)


def limits_text(limits: Limits) -> str:
    """What a candidate must keep, in one line; empty where nothing is asked."""
    told = {
        "first token at most {} ms": limits.max_ttft_ms,
        "between tokens (p95) at most {} ms": limits.max_itl_ms,
        "at least {} tok/s": limits.min_decode_tok_s,
        "peak memory at most {} MiB": limits.max_peak_mib,
        "quality loss at most {} nats per token": limits.max_quality_loss,
    }
    return "; ".join(text.format(formats.quantity(limit)) for text, limit in told.items() if limit is not None)


def weights_text(profile: WorkloadProfile) -> str:
    """What each metric counts in the score, and the objective that this is, if it is one."""
    weights = profile.weights
    named = f", the objective {profile.objective}" if profile.objective else ""
    return (
        f"first token ({weights.ttft:.3g}), throughput ({weights.throughput:.3g}) and memory ({weights.memory:.3g})"
        f"{named}"
    )


def _launched(results: Sequence[TrialResult]) -> list[TrialRecord]:
    return [result.record for result in results if result.record.status.was_launched]


def _dropped(manifest: SweepManifest) -> str:
    if not manifest.dropped_contexts:
        return ""
    return f"Prompts of {_numbers(manifest.dropped_contexts)} tokens were dropped: the model cannot hold them."


def _rungs(profile: WorkloadProfile) -> str:
    return (
        f"Rung 0: every prompt length once, with up to {RUNG0_OUTPUT_TOKENS} generated tokens. Rung 1: every cell "
        f"once, at full length. Rung 2: every cell, {formats.plural(profile.repeats, 'run')} each. Candidates are "
        "compared at equal rungs only."
    )


def _limits(limits: Limits) -> str:
    told = limits_text(limits)
    if not told:
        return ""
    return f"{told}. A limit must hold in every cell. Candidates that miss one are listed but not ranked."


def _score(profile: WorkloadProfile) -> str:
    return f"Weighted geometric mean of {weights_text(profile)}; 100 would be the best in all three at once."


def _quality(manifest: SweepManifest, records: Sequence[TrialRecord]) -> str:
    if any(record.kl_mean is not None for record in records):
        limit = manifest.profile.limits.max_quality_loss
        told = "no limit" if limit is None else f"limit {formats.quantity(limit)} nats per token"
        text = f"A fixed text is teacher-forced through the candidate's cache and compared with the baseline; {told}."
        text += f"{_doubtful(manifest.profile.limits, records)}{_of_other_engines(manifest, records)}"
        return f"{text} {formats.clean_line(manifest.quality_note)}" if manifest.quality_note else text
    reasons = _values(record.quality_note for record in records)
    if reasons:
        return f"Not measured: {reasons}."
    return formats.clean_line(manifest.quality_note or "Not measured.")


def _of_other_engines(manifest: SweepManifest, records: Sequence[TrialRecord]) -> str:
    """Whether the further engines were fed the prompts of the first one, and what stands in the way of comparing."""
    told = []
    for name in manifest.other_engines:
        own = [record for record in records if record.candidate.engine == name]
        for note in dict.fromkeys(record.quality_note for record in own if record.quality_note):
            told.append(f"{name}: {note}.")
        if any(record.kl_mean is not None and not record.quality_note for record in own):
            told.append(f"{name} was fed the same tokens as {manifest.engine}.")
    return "".join(f" {formats.clean_line(one)}" for one in told)


def _doubtful(limits: Limits, records: Sequence[TrialRecord]) -> str:
    labels = dict.fromkeys(formats.clean_line(one.candidate.label) for one in records if is_loss_in_doubt(one, limits))
    if not labels:
        return ""
    names = formats.listed(list(labels)) if len(labels) <= MOST_NAMED else f"{len(labels)} candidates"
    return f" Known within bounds that include the limit, so neither kept nor missed for certain: {names}."


def _warm_up(records: Sequence[TrialRecord]) -> str:
    how = "Each cell runs until two successive runs agree. That time is a cold cost and is in no other figure."
    restless = sorted({label_of(record) for record in records if record.warmed_up is False})
    return f"{how} Not steady within the calls allowed: {formats.listed(restless)}." if restless else how


def _disturbed(results: Sequence[TrialResult]) -> str:
    found = disturbances(results)
    if not found.runs:
        return ""
    counted = found.counted if found.disturbed else f"None of {formats.plural(found.runs, 'run')}"
    most = f", most often because of: {found.reason}" if found.reason else ""
    return (
        f"{counted}{most}. kvray watches how long threads wait for a CPU, the CPU time of other programs, other "
        "processes on the GPU, throttling and clocks. A disturbed run is repeated within limits; it counts only where "
        "its cell has no undisturbed run."
    )


def _energy(records: Sequence[TrialRecord]) -> str:
    if all(record.energy_j_per_tok is None for record in records):
        return ""
    return "Per generated token, prefill included: what the counters of whole GPU boards say of a run."


def _memory_of_several_gpus(records: Sequence[TrialRecord]) -> str:
    """The largest of each candidate's trials. Peaks in tables are those of all GPUs together."""
    largest: dict[str, tuple[float, str]] = {}
    for record in records:
        if record.parallelism > 1 and record.device_peak_mib and record.device_peak_gpu_mib:
            each, all_ = (formats.quantity(mib) for mib in (record.device_peak_gpu_mib, record.device_peak_mib))
            text = f"{record.candidate.label}: {each} MiB on the GPU that held most, {all_} MiB on all of them"
            known = largest.get(record.candidate_id)
            largest[record.candidate_id] = max(known or (0.0, ""), (record.device_peak_mib, text))
    return "; ".join(text for _, text in largest.values())


def _scheduling(records: Sequence[TrialRecord]) -> str:
    parts = {
        "niceness": _values(record.niceness for record in records),
        "threads": _values(record.threads for record in records),
        "usable CPUs": _values(record.cpus for record in records),
        "CPU quota": _values(f"{record.cpu_quota:g}" for record in records if record.cpu_quota is not None),
    }
    return "; ".join(f"{name} {text}" for name, text in parts.items() if text)


def _values(values: Iterable[object]) -> str:
    """The distinct values: numbers by size, then texts."""
    distinct = {value if isinstance(value, int | float) else str(value) for value in values if value is not None}
    ordered = sorted(distinct, key=lambda one: (isinstance(one, str), one))
    return ", ".join(dict.fromkeys(formats.clean_line(str(value)) for value in ordered))


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(formats.count(value) for value in values)
