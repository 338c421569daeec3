"""One attempt at a sweep: its manifest, and what it takes from the records of the attempts before it."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from kvray.analysis.disturbed import resting_on_disturbed
from kvray.candidate import DeviceType
from kvray.config import SearchStrategy, TuneConfig
from kvray.engines.base import EngineAdapter, ModelInfo
from kvray.engines.interpreter import EnginePython
from kvray.files.redaction import redact
from kvray.jobs.sent_model import as_typed, repeating_command, sent_model_name, sent_model_note, typed_arguments
from kvray.probes.environment import Environment, capture_environment, kvray_version, library_versions
from kvray.record import TrialResult
from kvray.store.fingerprint import SweepFingerprint, judgement_differences
from kvray.store.manifest import EngineModel, MeasuredType, SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.store.resuming import (
    Recall,
    asks_nothing_new,
    current_results,
    first_attempt,
    further_attempt,
    of_type,
    recall,
)
from kvray.tuning.preview import Preview
from kvray.workload import WorkloadProfile

_logger = logging.getLogger("kvray.tuning.attempt")
RANDOM_WEIGHTS_NOTE = (
    "Random weights: speed and memory are real, quality is not; it is recorded, and its limit is not enforced."
)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Under which one type of GPU, or the one device that there is, is measured on.

    Attributes:
        preview: what would be measured.
        adapters: the engines that take part, the baseline's first.
        threads: with which a trial computes; `None` leaves the choice to the engine's library.
        slots: trials at the same time; 1 where each has its machine to itself, however many machines there are.
        gpu_type: Ray's accelerator type, where that is known.
        environments: by engine, what a node of the cluster that measures has; without a cluster there are none.
    """

    preview: Preview
    adapters: Sequence[EngineAdapter]
    threads: int | None
    slots: int
    gpu_type: str | None = None
    environments: Mapping[str, Environment] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A sweep that may start, or go on: checked, and not written yet.

    Attributes:
        manifest: to be written before the first trial.
        recalls: for each share, what is taken from the records; nothing for a new sweep.
    """

    manifest: SweepManifest
    recalls: tuple[Recall, ...]


def prepare_attempt(
    store: ResultsStore,
    config: TuneConfig,
    shares: Sequence[Conditions],
    *,
    run_id: str,
    arguments: Iterable[str] = (),
    of_batch: bool = False,
    pythons: Mapping[str, EnginePython] = MappingProxyType({}),
) -> Attempt:
    """Compare what is to be measured with what was, where `config` resumes a sweep.

    Args:
        shares: the manifest tells of the first one, and what differs on the others.
        of_batch: whether `kvray batch` asks for it, which goes on with it by its own id.
        pythons: by engine, where trials run that do not run in kvray's own Python.

    Raises:
        ResultsError: there is no such sweep, or what it measured cannot be compared with this and nothing is forced.
    """
    first = shares[0]
    new = _manifest(config, first.preview, first.adapters, run_id=run_id, arguments=tuple(arguments), pythons=pythons)
    command = repeating_command("batch" if of_batch else "tune", sends_model=bool(new.sent_models))
    new = new.model_copy(update={"gpu_types": _gpu_types(shares), "command": command})
    fingerprint = fingerprint_of(config, first, pythons)
    candidates = len(first.preview.space.candidates)
    if config.resume is None:
        manifest = first_attempt(new, fingerprint, candidates=candidates)
        return Attempt(manifest=manifest, recalls=tuple(Recall() for _ in shares))
    old, results = store.read_manifest(run_id).judged_by(), store.read(run_id)
    manifest = further_attempt(old, new, fingerprint, candidates=candidates, results=results, force=config.force)
    _tell_of_new_judgement(old.profile, manifest.profile)
    own = [of_type(results, share.gpu_type, share.preview.device.device_name) for share in shares]
    recalls = tuple(_recall(config, manifest, one) for one in own)
    if all(
        asks_nothing_new(manifest, found, one, {candidate.candidate_id for candidate in share.preview.space.candidates})
        for share, found, one in zip(shares, recalls, own, strict=True)
    ):
        manifest = manifest.ended(manifest.session_started_at)
    return Attempt(manifest=manifest, recalls=recalls)


def _recall(config: TuneConfig, manifest: SweepManifest, results: Sequence[TrialResult]) -> Recall:
    current, _ = current_results(manifest, results)
    return recall(
        manifest,
        results,
        config.retry,
        disturbed=resting_on_disturbed(current) if config.retry_disturbed else (),
        reopens_stopped=not _reconsiders_stopped(config),
    )


def _gpu_types(shares: Sequence[Conditions]) -> tuple[MeasuredType, ...]:
    """Nothing where there is one type only."""
    if len(shares) < 2:
        return ()
    return tuple(
        MeasuredType(
            gpu_type=share.gpu_type or "",
            device_name=share.preview.device.device_name,
            baseline_id=share.preview.space.baseline.candidate_id,
            defaults=_defaults(share.preview),
            left_out=share.preview.left_out,
        )
        for share in shares
    )


def _reconsiders_stopped(config: TuneConfig) -> bool:
    """Whether the search's model looks again at what was stopped, and has it confirmed where it may be the best."""
    return config.search is SearchStrategy.MODEL and config.confirm_rounds > 0


def _tell_of_new_judgement(before: WorkloadProfile, now: WorkloadProfile) -> None:
    if told := judgement_differences(before, now):
        _logger.warning("What was measured before is judged anew: %s.", "; ".join(told))


def fingerprint_of(config: TuneConfig, share: Conditions, pythons: Mapping[str, EnginePython]) -> SweepFingerprint:
    """What must be the same for measurements to be compared with those of `share`."""
    preview, adapters, environments = share.preview, share.adapters, share.environments
    environment = environments.get(adapters[0].name) or capture_environment(
        preview.device.device, libraries=adapters[0].libraries
    )
    python = pythons.get(adapters[0].name)
    own_model = config.model_for(adapters[0].name)
    model = replace(preview.model, model_id=sent_model_name(own_model) or preview.model.model_id)
    return SweepFingerprint.of(
        engine=adapters[0].name,
        other_engines={
            adapter.name: "; ".join(
                (*_own_file(config, adapter, one), one.model.revision, *_libraries(adapter, pythons, environments))
            )
            for adapter, one in zip(adapters[1:], preview.others, strict=True)
        },
        model=model,
        profile=preview.profile,
        baseline_id=preview.space.baseline.candidate_id,
        device=preview.device,
        threads=share.threads,
        slots=share.slots,
        on_cluster=config.address is not None,
        environment=environment if python is None else python.applied_to(environment),
    )


def _own_file(config: TuneConfig, adapter: EngineAdapter, preview: Preview) -> tuple[str, ...]:
    """The name of the file that a further engine takes in place of the model, where there is one."""
    return (preview.model.name,) if adapter.name in config.models_for else ()


def _manifest(
    config: TuneConfig,
    preview: Preview,
    adapters: Sequence[EngineAdapter],
    *,
    run_id: str,
    arguments: tuple[str, ...],
    pythons: Mapping[str, EnginePython],
) -> SweepManifest:
    model, device = preview.model, preview.device
    return SweepManifest(
        kvray_version=kvray_version(),
        run_id=run_id,
        created_at=dt.datetime.now(dt.UTC),
        model_id=model.model_id,
        model_revision=model.revision,
        architecture=model.architecture,
        loader=model.loader,
        weights=model.weights,
        engine=adapters[0].name,
        other_engines={one.space.baseline.engine: _engine_model(one.model) for one in preview.others},
        device=device.device.value,
        device_name=device.device_name,
        profile=preview.profile,
        dropped_contexts=preview.dropped_contexts,
        baseline_id=preview.space.baseline.candidate_id,
        defaults=_defaults(preview),
        memory_note=_memory_note(adapters, device.device),
        measured_notes={one.name: note for one in adapters if (note := one.measured_note(device.device))},
        quality_note=RANDOM_WEIGHTS_NOTE if model.random_weights else None,
        model_notes=_model_notes(config, preview),
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
        left_out=preview.left_out,
        engine_pythons={name: python.path for name, python in pythons.items()},
        search=config.search.value,
        budget_s=config.budget_s,
        max_trials=config.max_trials,
        confirm_rounds=config.confirm_rounds,
        exclusive=config.exclusive,
        seed=config.seed,
        arguments=tuple(redact(argument) for argument in typed_arguments(arguments)),
        sent_models=_sent_models(config, preview),
    )


def _sent_models(config: TuneConfig, preview: Preview) -> dict[str, str]:
    """How the user named each model that came with this job, by its name here."""
    named = {one.model.model_id: config.model_for(one.space.baseline.engine) for one in (preview, *preview.others)}
    return {real: redact(as_typed(name)) for real, name in named.items() if as_typed(name) != name}


def _model_notes(config: TuneConfig, preview: Preview) -> tuple[str, ...]:
    sent = [sent_model_note(config.model_for(engine)) for engine in preview.engines]
    return tuple(dict.fromkeys([*filter(None, sent), *preview.notes]))


def _libraries(
    adapter: EngineAdapter, pythons: Mapping[str, EnginePython], environments: Mapping[str, Environment]
) -> list[str]:
    """The libraries of an engine where its trials run, e.g. `torch 2.13.0`."""
    where = pythons.get(adapter.name) or environments.get(adapter.name)
    versions = library_versions(adapter.libraries) if where is None else where.engine_versions
    return [f"{name} {version}" for name, version in sorted(versions.items())]


def _engine_model(model: ModelInfo) -> EngineModel:
    return EngineModel(
        model_id=model.model_id,
        model_revision=model.revision,
        architecture=model.architecture,
        loader=model.loader,
        weights=model.weights,
    )


def _defaults(preview: Preview) -> dict[str, str]:
    return {one.space.baseline.engine: one.space.baseline.candidate_id for one in (preview, *preview.others)}


def _memory_note(adapters: Sequence[EngineAdapter], device: DeviceType) -> str:
    notes = {adapter.name: adapter.memory_note(device) for adapter in adapters}
    if len(set(notes.values())) == 1:
        return notes[adapters[0].name]
    return " ".join(f"{name}: {note}" for name, note in notes.items())
