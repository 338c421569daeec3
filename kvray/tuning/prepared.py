"""A sweep that can run: its manifest is written, its queue is made, and its records have their keeper."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from kvray.analysis.sampler import Sampler
from kvray.config import SearchStrategy, TuneConfig
from kvray.engines.base import EngineAdapter, ModelRequest
from kvray.engines.interpreter import EnginePython
from kvray.probes.environment import Environment
from kvray.record import Role, TrialResult
from kvray.store.claim import Claim
from kvray.store.keeper import RecordKeeper
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.store.resuming import Recall
from kvray.sweep.batch import QueuedSweep
from kvray.sweep.bounds import Bounds
from kvray.sweep.outlook import expected_launches
from kvray.sweep.samplers import make_sampler
from kvray.sweep.slot_plan import SlotPlan
from kvray.sweep.task_maker import TaskMaker
from kvray.sweep.trial_queue import SweepQueue
from kvray.trial.position import PositionBoard
from kvray.trial.spec import ReferenceSpec, TrialSpec
from kvray.tuning.attempt import prepare_attempt
from kvray.tuning.engines import EnginePart
from kvray.tuning.observer import SearchObserver
from kvray.tuning.preview import Preview
from kvray.tuning.recorder import Recorder


@dataclass(frozen=True, kw_only=True)
class PreparedSweep:
    """One attempt at a sweep, before its first trial.

    Attributes:
        recorded: what earlier attempts have left.
        positions: where its trials note how far they are.
        size: memory that the baseline takes by forecast (MiB); 0 where nothing is forecast.
    """

    keeper: RecordKeeper
    recorder: Recorder
    sampler: Sampler
    queue: SweepQueue
    recorded: tuple[TrialResult, ...]
    positions: PositionBoard
    size: float

    @property
    def queued(self) -> QueuedSweep:
        """What `run_sweep` takes."""
        return QueuedSweep(queue=self.queue, observer=self.recorder, size=self.size)

    def start(self) -> None:
        """Before the first trial: keep what will not be launched, and tell of what is known."""
        self.recorder.start(self.recorded, self.positions)

    def end(self) -> None:
        """After the last trial: keep what was not launched, and that the attempt has ended."""
        self.recorder.end(self.queue.never_launched(), self.sampler.predictions())
        self.keeper.end_attempt()


def prepare_sweep(
    store: ResultsStore,
    config: TuneConfig,
    preview: Preview,
    parts: Sequence[EnginePart],
    *,
    claim: Claim,
    run_id: str,
    slots: SlotPlan,
    scratch: Path,
    started_s: float,
    arguments: Iterable[str] = (),
    pythons: Mapping[str, EnginePython] = MappingProxyType({}),
    observers: Sequence[SearchObserver] = (),
    environments: Mapping[str, Environment] = MappingProxyType({}),
    clock: Callable[[], float] = time.monotonic,
) -> PreparedSweep:
    """Write the manifest of an attempt, and make its queue.

    Args:
        preview: of all `parts` together.
        parts: what each engine contributes, the baseline's first.
        started_s: by `clock`: the budget runs from then.
        pythons: by engine, in which its trials run, where that is not kvray's own.
        environments: by engine, what a node of the cluster that measures has; without a cluster there are none.

    Raises:
        ResultsError: as `prepare_attempt`.
        OutputError: the store cannot be written.
    """
    adapters = [part.adapter for part in parts]
    attempt = prepare_attempt(
        store,
        config,
        preview,
        adapters,
        run_id=run_id,
        threads=slots.threads,
        slots=slots.slots,
        arguments=arguments,
        pythons=pythons,
        environments=environments,
    )
    store.write_manifest(attempt.manifest)
    keeper = RecordKeeper(store, attempt.manifest, claim)
    recorder = Recorder(keeper, preview, attempt.manifest, observers)
    sampler = make_sampler(
        config.search,
        preview.space.candidates,
        preview.profile,
        preview.forecasts,
        axes=[axis for one in (*preview.others, preview) for axis in one.axes],
        seed=config.seed,
    )
    tasks = TaskMaker(
        _plain_spec(config, preview, parts[0].request, attempt.manifest),
        reference=_reference(parts[0], attempt.manifest),
        forecasts=preview.forecasts,
        adapters=adapters,
        requests={part.adapter.name: part.request for part in parts},
        pythons=pythons,
        libraries=_libraries(adapters) if config.address is not None else None,
        threads=slots.threads,
        scratch=scratch,
        trial_suffix=attempt.manifest.trial_suffix,
        trial_ids=attempt.recall.trial_ids,
    )
    return PreparedSweep(
        keeper=keeper,
        recorder=recorder,
        sampler=sampler,
        queue=_queue(config, preview, attempt.recall, sampler, tasks, started_s=started_s, clock=clock),
        recorded=tuple(attempt.recall.results),
        positions=PositionBoard(scratch),
        size=preview.baseline_mib,
    )


def _libraries(adapters: Sequence[EngineAdapter]) -> tuple[str, ...]:
    """Those in which any of the engines computes."""
    return tuple(dict.fromkeys(name for adapter in adapters for name in adapter.libraries))


def _queue(
    config: TuneConfig,
    preview: Preview,
    recall: Recall,
    sampler: Sampler,
    tasks: TaskMaker,
    *,
    started_s: float,
    clock: Callable[[], float],
) -> SweepQueue:
    return SweepQueue(
        preview.space.candidates,
        sampler=sampler,
        profile=preview.profile,
        make_task=tasks,
        bounds=Bounds(
            deadline_s=None if config.budget_s is None else started_s + config.budget_s,
            budget_s=config.budget_s or 0.0,
            max_trials=config.max_trials,
            confirm_rounds=config.confirm_rounds,
        ),
        recorded=recall.results,
        defaults=[one.candidate_id for one in preview.defaults],
        retry=recall.retry,
        stops_early=config.search is not SearchStrategy.GRID,
        repeats_apart=config.search is SearchStrategy.MODEL,
        expected_launches=expected_launches(config.search, len(preview.space.candidates), most=config.max_trials),
        clock=clock,
    )


def _plain_spec(config: TuneConfig, preview: Preview, request: ModelRequest, manifest: SweepManifest) -> TrialSpec:
    """What all trials of the sweep have in common, with the baseline in it."""
    return TrialSpec(
        run_id=manifest.run_id,
        trial_id="",
        role=Role.BASELINE,
        request=request,
        candidate=preview.space.baseline,
        profile=preview.profile,
        device=preview.device.device,
        timeout_s=config.timeout_s,
        fingerprint=manifest.fingerprint_id,
    )


def _reference(part: EnginePart, manifest: SweepManifest) -> ReferenceSpec:
    """The baseline of the first engine, for the candidates of all."""
    versions = manifest.attempts[-1].fingerprint.versions
    return ReferenceSpec(
        candidate=part.preview.space.baseline,
        model_revision=part.preview.model.revision,
        enforced=not part.preview.model.random_weights,
        adapter=part.adapter,
        request=part.request,
        python=manifest.engine_pythons.get(part.adapter.name),
        engine_versions=tuple(sorted(versions.items())),
    )
