"""`TuningSearch`: the whole job in order: preview, sweep, records, analysis, plan, reports."""

from __future__ import annotations

import datetime as dt
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from kvray.analysis.misses import nearest_misses
from kvray.config import TuneConfig
from kvray.engines.base import EngineAdapter, ModelRequest
from kvray.engines.registry import get_engine
from kvray.errors import AllTrialsFailedError, KvrayError, LimitsMissedError, ResultsError, SweepInterruptedError
from kvray.preview import Preview, check_request, preview_sweep
from kvray.probes.environment import kvray_version
from kvray.record import Role, TrialRecord, TrialResult, TrialStatus
from kvray.result import TuneResult, read_result, write_artefacts
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.sweep.driver import plan_slots, run_sweep
from kvray.sweep.progress import SweepObserver
from kvray.sweep.session import RaySession, quiet_ray
from kvray.sweep.slot import TrialOrder
from kvray.trial.spec import ReferenceSpec, TrialSpec

RANDOM_WEIGHTS_NOTE = (
    "Random weights: speed and memory are real, quality is not; it is recorded, and its limit is not enforced."
)


class SearchObserver(SweepObserver, Protocol):
    """Hears how the job goes on, in the driver's process."""

    def search_started(self, preview: Preview, manifest: SweepManifest, todo: Sequence[TrialSpec]) -> None:
        """Everything is known and checked; `todo` are the trials to come."""


class TuningSearch:
    """Measures the configurations of one model and decides.

    Args:
        config: what to tune.
        adapter: the engine; by default the one that `config.engine` names.
        observer: hears of every trial.
        arguments: what a user typed after `kvray tune`, kept to tell how to resume.
    """

    def __init__(
        self,
        *,
        config: TuneConfig,
        adapter: EngineAdapter | None = None,
        observer: SearchObserver | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self._config = config
        self._adapter = adapter
        self._observer = observer
        self._arguments = tuple(arguments)

    def preview(self) -> Preview:
        """What would be measured; nothing is started or written.

        Raises:
            KvrayError: the model, the engine or the profile cannot be used, or no candidate is left.
        """
        adapter = self._engine()
        check_request(self._config, adapter)
        return preview_sweep(self._config, adapter)

    def run(self) -> TuneResult:
        """Measure; leave records, plan, snippet and reports in `config.output_dir`.

        Raises:
            KvrayError: before any trial for what can be known before; afterwards `AllTrialsFailedError`,
                `LimitsMissedError`, or `SweepInterruptedError` when the user pressed Ctrl-C. Records are kept in any
                case.
        """
        config, adapter = self._config, self._engine()
        store = ResultsStore(config.output_dir)
        check_request(config, adapter)
        if config.resume is not None:
            store.read_manifest(config.resume)
        store.check_writable()
        run_id = config.resume or _new_run_id()
        interrupted = self._measure(store, run_id, adapter)
        store.compact(run_id)
        result = read_result(store, run_id)
        write_artefacts(store, result)
        if interrupted:
            raise interruption(store, run_id)
        if not result.analysis.ranking.entries:
            raise _no_winner(result)
        return result

    def _engine(self) -> EngineAdapter:
        return self._adapter or get_engine(self._config.engine)

    def _measure(self, store: ResultsStore, run_id: str, adapter: EngineAdapter) -> bool:
        """Run all trials that `run_id` still lacks; returns whether the user interrupted them."""
        config = self._config
        with _log_kept_in(store, run_id) as log, quiet_ray(log), RaySession(address=config.address) as ray:
            # Ray takes seconds to start and does it in the background.
            preview = preview_sweep(config, adapter)
            request = ModelRequest(model_id=preview.model.model_id, trust_remote_code=config.trust_remote_code)
            adapter.fetch_weights(request)
            slots = plan_slots(
                ray.resources(), device=preview.device.device, slots=config.slots, user_threads=_user_threads()
            )
            manifest = _opened_manifest(store, config, self._new_manifest(run_id, preview, adapter))
            todo = _missing_trials(store, _trial_specs(config, preview, request, run_id))
            recorder = _Recorder(store, self._observer)
            recorder.search_started(preview, manifest, todo)
            orders = [
                TrialOrder(spec=spec, adapter=adapter, threads=slots.threads, scratch=log.parent) for spec in todo
            ]
            try:
                run_sweep(orders, slots=slots, observer=recorder)
            except KeyboardInterrupt:
                return True
        return False

    def _new_manifest(self, run_id: str, preview: Preview, adapter: EngineAdapter) -> SweepManifest:
        model, device = preview.model, preview.device
        return SweepManifest(
            kvray_version=kvray_version(),
            run_id=run_id,
            created_at=dt.datetime.now(dt.UTC),
            model_id=model.model_id,
            model_revision=model.revision,
            architecture=model.architecture,
            engine=adapter.name,
            device=device.device.value,
            device_name=device.device_name,
            profile=preview.profile,
            dropped_contexts=preview.dropped_contexts,
            baseline_id=preview.space.baseline.candidate_id,
            memory_note=adapter.memory_note(device.device),
            quality_note=RANDOM_WEIGHTS_NOTE if model.random_weights else None,
            trust_remote_code=self._config.trust_remote_code,
            left_out=preview.left_out,
            seed=self._config.seed,
            arguments=self._arguments,
        )


def interruption(store: ResultsStore, run_id: str) -> SweepInterruptedError:
    """The error that tells the user where the ended trials of `run_id` are and how to go on."""
    return SweepInterruptedError(
        f"Interrupted; the trials that had ended are kept in {store.display_name}.",
        hint=f"Repeat the command with --resume {run_id} to measure the rest.",
    )


class _Recorder:
    """Writes every trial the moment it ends, then passes the news on."""

    def __init__(self, store: ResultsStore, observer: SearchObserver | None) -> None:
        self._store = store
        self._observer = observer

    def search_started(self, preview: Preview, manifest: SweepManifest, todo: Sequence[TrialSpec]) -> None:
        self._store.append_many(_rejected_records(preview, manifest))
        if self._observer is not None:
            self._observer.search_started(preview, manifest, todo)

    def trial_started(self, spec: TrialSpec) -> None:
        if self._observer is not None:
            self._observer.trial_started(spec)

    def rung_finished(self, result: TrialResult) -> None:
        if self._observer is not None:
            self._observer.rung_finished(result)

    def trial_finished(self, result: TrialResult) -> None:
        self._store.append(result)
        if self._observer is not None:
            self._observer.trial_finished(result)


def _opened_manifest(store: ResultsStore, config: TuneConfig, new: SweepManifest) -> SweepManifest:
    """Write the manifest of a new sweep, or check that the one to resume asked the same.

    Raises:
        ResultsError: there is no such sweep, or it measured something else.
    """
    if config.resume is None:
        store.write_manifest(new)
        return new
    old = store.read_manifest(config.resume)
    same = ("model_id", "model_revision", "engine", "device", "device_name", "profile", "baseline_id")
    different = [name for name in same if getattr(old, name) != getattr(new, name)]
    if different:
        raise ResultsError(
            f"Sweep {config.resume!r} cannot be resumed: it was run with another {', '.join(different)}.",
            hint="Repeat its own arguments, or start a new sweep without --resume.",
        )
    return old


def _trial_specs(config: TuneConfig, preview: Preview, request: ModelRequest, run_id: str) -> list[TrialSpec]:
    """One trial per candidate, baseline first. A trial's id is the same in every attempt at this sweep."""
    space = preview.space
    reference = ReferenceSpec(
        candidate=space.baseline,
        model_revision=preview.model.revision,
        enforced=not preview.model.random_weights,
    )
    return [
        TrialSpec(
            run_id=run_id,
            trial_id=f"{number:04d}-{candidate.candidate_id}",
            role=Role.BASELINE if candidate == space.baseline else Role.SEARCH,
            request=request,
            candidate=candidate,
            profile=preview.profile,
            device=preview.device.device,
            timeout_s=config.timeout_s,
            reference=reference,
        )
        for number, candidate in enumerate(space.candidates)
    ]


def _missing_trials(store: ResultsStore, specs: Sequence[TrialSpec]) -> list[TrialSpec]:
    recorded = {result.record.candidate_id for result in store.read(specs[0].run_id)}
    return [spec for spec in specs if spec.candidate.candidate_id not in recorded]


def _rejected_records(preview: Preview, manifest: SweepManifest) -> list[TrialRecord]:
    return [
        TrialRecord.of(
            rejected.candidate,
            run_id=manifest.run_id,
            trial_id=f"rejected-{rejected.candidate.candidate_id}",
            role=Role.SEARCH,
            model_id=manifest.model_id,
            profile=manifest.profile.name,
            status=TrialStatus.REJECTED,
            message=rejected.reason,
        )
        for rejected in preview.space.rejected
    ]


def _no_winner(result: TuneResult) -> KvrayError:
    nearest = nearest_misses(result.analysis.ranking, result.manifest.profile.limits)
    if not nearest:
        return AllTrialsFailedError(
            f"No candidate was measured completely: {_failures(result.results)}.",
            hint=f"See {result.paths.report_markdown} for each one's reason and log.",
        )
    told = " ".join(f"{place}. {near.record.candidate.label}: {near.text}." for place, near in enumerate(nearest, 1))
    return LimitsMissedError(
        f"No candidate keeps the limits of profile {result.manifest.profile.name!r}. Nearest: {told}",
        hint=f"Loosen a limit, or let --space full try more; see {result.paths.report_markdown} for all of them.",
    )


def _failures(results: Sequence[TrialResult]) -> str:
    """E.g. `oom (3): CUDA out of memory; unsupported (1): …`, each status with its first message."""
    failed = [result.record for result in results if result.record.status.was_launched]
    by_status = {record.status: [other for other in failed if other.status is record.status] for record in failed}
    return "; ".join(
        f"{status} ({len(records)}): {(records[0].message or 'no message').rstrip('.')}"
        for status, records in by_status.items()
    )


def _new_run_id() -> str:
    """Sorts by time, is unique, and reads as a date: `20261124-211419-3f9a`."""
    return f"{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _user_threads() -> int | None:
    """The thread count that the user has set for OpenMP programs, if any."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else None


@contextmanager
def _log_kept_in(store: ResultsStore, run_id: str) -> Iterator[Path]:
    """A file for what Ray has to say; kept beside the reports if anything was said."""
    with tempfile.TemporaryDirectory(prefix="kvray-log-") as folder:
        log = Path(folder) / "sweep.log"
        try:
            yield log
        finally:
            text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
            if text.strip():
                store.write_text(store.paths(run_id).sweep_log, text)
