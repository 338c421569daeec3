"""A sweep that can run: its manifest is written, its queue is made, and its records have their keeper."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from kvray.analysis.sampler import Sampler
from kvray.config import SearchStrategy, TuneConfig
from kvray.engines.base import EngineAdapter
from kvray.engines.interpreter import EnginePython
from kvray.record import Role, TrialResult
from kvray.store.claim import Claim
from kvray.store.fingerprint import SweepFingerprint
from kvray.store.keeper import RecordKeeper
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.store.resuming import Recall
from kvray.sweep.batch import QueuedSweep
from kvray.sweep.bounds import Bounds
from kvray.sweep.outlook import expected_launches
from kvray.sweep.samplers import make_sampler
from kvray.sweep.task_maker import TaskMaker
from kvray.sweep.trial_queue import SweepQueue
from kvray.trial.position import PositionBoard
from kvray.trial.spec import ReferenceSpec, TrialSpec
from kvray.tuning.attempt import fingerprint_of, prepare_attempt
from kvray.tuning.preview import Preview
from kvray.tuning.recorder import Recorder
from kvray.tuning.share import Share

_LONGEST_TYPE = 24
"""Characters of a type's name in trial ids, which name files."""


@dataclass(frozen=True, kw_only=True)
class PreparedShare:
    """What is measured on one type of GPU, before its first trial.

    Attributes:
        recorded: what earlier attempts have left.
        size: memory that the baseline takes by forecast (MiB); 0 where nothing is forecast.
        gpu_type: as in `SlotPlan`.
        most_gpus: GPUs of its largest trial.
    """

    recorder: Recorder
    sampler: Sampler
    queue: SweepQueue
    recorded: tuple[TrialResult, ...]
    size: float
    gpu_type: str | None
    most_gpus: int

    @property
    def queued(self) -> QueuedSweep:
        """What `run_sweep` takes."""
        return QueuedSweep(
            queue=self.queue,
            observer=self.recorder,
            size=self.size,
            gpu_type=self.gpu_type,
            most_gpus=self.most_gpus,
            attend=self.recorder.attend,
        )


@dataclass(frozen=True, kw_only=True)
class PreparedSweep:
    """One attempt at a sweep, before its first trial.

    Attributes:
        shares: for each type of GPU what is measured on it; one where types do not matter.
        positions: where its trials note how far they are.
    """

    keeper: RecordKeeper
    shares: tuple[PreparedShare, ...]
    positions: PositionBoard

    @property
    def queued(self) -> tuple[QueuedSweep, ...]:
        """What `run_sweep` takes."""
        return tuple(share.queued for share in self.shares)

    @property
    def is_over(self) -> bool:
        """Whether nothing runs and nothing is to be launched."""
        return all(share.queue.is_over for share in self.shares)

    def start(self) -> None:
        """Before the first trial: keep what will not be launched, and tell of what is known."""
        for share in self.shares:
            share.recorder.start(share.recorded, self.positions)

    def end(self) -> None:
        """After the last trial: keep what was not launched, and that the attempt has ended."""
        for share in self.shares:
            share.recorder.end(share.queue.never_launched(), share.sampler.predictions())
        self.keeper.end_attempt()


def prepare_sweep(
    store: ResultsStore,
    config: TuneConfig,
    shares: Sequence[Share],
    *,
    claim: Claim,
    run_id: str,
    scratch: Path,
    started_s: float,
    arguments: Iterable[str] = (),
    of_batch: bool = False,
    pythons: Mapping[str, EnginePython] = MappingProxyType({}),
    clock: Callable[[], float] = time.monotonic,
) -> PreparedSweep:
    """Write the manifest of an attempt, and make its queues.

    Args:
        shares: what is measured on each type of GPU. Each is searched for itself.
        of_batch: as for `prepare_attempt`.
        started_s: by `clock`: the budget runs from then.
        pythons: by engine, in which its trials run, where that is not kvray's own.

    Raises:
        ResultsError: as `prepare_attempt`.
        OutputError: the store cannot be written.
    """
    attempt = prepare_attempt(
        store,
        config,
        [share.conditions for share in shares],
        run_id=run_id,
        arguments=arguments,
        of_batch=of_batch,
        pythons=pythons,
    )
    store.write_manifest(attempt.manifest)
    keeper = RecordKeeper(store, attempt.manifest, claim)
    prepared = (
        _prepared_share(
            config,
            share,
            found,
            keeper=keeper,
            manifest=attempt.manifest,
            pythons=pythons,
            scratch=scratch,
            started_s=started_s,
            clock=clock,
        )
        for share, found in zip(shares, attempt.recalls, strict=True)
    )
    return PreparedSweep(keeper=keeper, shares=tuple(prepared), positions=PositionBoard(scratch))


def _prepared_share(
    config: TuneConfig,
    share: Share,
    found: Recall,
    *,
    keeper: RecordKeeper,
    manifest: SweepManifest,
    pythons: Mapping[str, EnginePython],
    scratch: Path,
    started_s: float,
    clock: Callable[[], float],
) -> PreparedShare:
    preview, gpu_type, adapters = share.preview, share.slots.gpu_type, share.conditions.adapters
    suffix = f"{_type_suffix(gpu_type)}{manifest.trial_suffix}"
    sampler = make_sampler(
        config.search,
        preview.space.candidates,
        preview.profile,
        preview.forecasts,
        axes=[axis for one in (*preview.others, preview) for axis in one.axes],
        seed=config.seed,
    )
    tasks = TaskMaker(
        _plain_spec(config, share, manifest),
        reference=_reference(share, manifest, fingerprint_of(config, share.conditions, pythons)),
        forecasts=preview.forecasts,
        adapters=adapters,
        requests={part.adapter.name: part.request for part in share.parts},
        pythons=pythons,
        libraries=_libraries(adapters) if config.address is not None else None,
        threads=share.slots.threads,
        scratch=scratch,
        trial_suffix=suffix,
        trial_ids=found.trial_ids,
    )
    return PreparedShare(
        recorder=Recorder(keeper, preview, manifest, share.observers, gpu_type=gpu_type, trial_suffix=suffix),
        sampler=sampler,
        queue=_queue(config, preview, found, sampler, tasks, started_s=started_s, clock=clock),
        recorded=tuple(found.results),
        size=preview.baseline_mib,
        gpu_type=gpu_type,
        most_gpus=max(candidate.parallelism for candidate in preview.space.candidates),
    )


def _type_suffix(gpu_type: str | None) -> str:
    """Ends the ids of trials on that type, so that they never replace those of another."""
    return "" if gpu_type is None else f".{re.sub('[^A-Za-z0-9]+', '-', gpu_type)[:_LONGEST_TYPE]}"


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


def _plain_spec(config: TuneConfig, share: Share, manifest: SweepManifest) -> TrialSpec:
    """What all trials of the share have in common, with the baseline in it."""
    preview = share.preview
    return TrialSpec(
        run_id=manifest.run_id,
        trial_id="",
        role=Role.BASELINE,
        request=share.parts[0].request,
        candidate=preview.space.baseline,
        profile=preview.profile,
        device=preview.device.device,
        timeout_s=config.timeout_s,
        fingerprint=manifest.fingerprint_id,
        gpu_type=share.slots.gpu_type,
    )


def _reference(share: Share, manifest: SweepManifest, conditions: SweepFingerprint) -> ReferenceSpec:
    """The baseline of the first engine, for the candidates of all."""
    part = share.parts[0]
    return ReferenceSpec(
        candidate=part.preview.space.baseline,
        model_revision=part.preview.model.revision,
        enforced=not part.preview.model.random_weights,
        adapter=part.adapter,
        request=part.request,
        python=manifest.engine_pythons.get(part.adapter.name),
        engine_versions=tuple(sorted(conditions.versions.items())),
    )
