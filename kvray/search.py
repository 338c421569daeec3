"""`TuningSearch`: the whole job in order: preview, sweep, records, analysis, plan, reports."""

from __future__ import annotations

import datetime as dt
import functools
import logging
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

from kvray.analysis.launching import Prediction
from kvray.attempt import prepare_attempt
from kvray.candidate import Candidate
from kvray.config import SearchStrategy, TuneConfig, warn_of_closed_cache
from kvray.endings import broken_off, interruption, no_winner, write_up
from kvray.engines.base import EngineAdapter, ModelRequest
from kvray.engines.offline import offline_environment
from kvray.engines.registry import get_engine
from kvray.errors import KvrayError, OutputError, SweepError, first_line
from kvray.preview import Preview, check_request, detect_device, known_hardware, preview_sweep, requested_model
from kvray.probes.company import announced_sweep, disturbers
from kvray.probes.cpu import openmp_threads
from kvray.record import Role, TrialRecord, TrialResult, TrialStatus
from kvray.redaction import redact
from kvray.result import TuneResult
from kvray.store.claim import claimed_sweep
from kvray.store.keeper import RecordKeeper
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.sweep.course import Bounds, SweepCourse
from kvray.sweep.driver import plan_slots, run_sweep
from kvray.sweep.launches import check_search, make_launches
from kvray.sweep.orders import OrderMaker
from kvray.sweep.progress import SweepObserver
from kvray.sweep.recording import forecast_columns
from kvray.sweep.session import RaySession, quiet_ray
from kvray.trial.spec import ReferenceSpec, TrialSpec

_logger = logging.getLogger("kvray.search")


class SearchObserver(SweepObserver, Protocol):
    """Hears how the job goes on, in the driver's process."""

    def measuring_device(self) -> None:
        """The device's rates are measured now, for they never were undisturbed: a few seconds."""

    def search_started(self, preview: Preview, manifest: SweepManifest, recorded: Sequence[TrialResult]) -> None:
        """Everything is known and checked; `recorded` is what earlier attempts at the sweep have measured."""


T = TypeVar("T")


def _offline_where_asked(method: Callable[[TuningSearch], T]) -> Callable[[TuningSearch], T]:
    @functools.wraps(method)
    def wrapped(self: TuningSearch) -> T:
        with offline_environment(enabled=self._config.offline):
            return method(self)

    return wrapped


class TuningSearch:
    """Measures the configurations of one model and decides.

    Args:
        config: what to tune.
        adapter: the engine; by default the one that `config.engine` names.
        observer: hears of every trial.
        arguments: what a user typed after `kvray tune`, kept without secrets to tell how to resume.
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

    @_offline_where_asked
    def preview(self) -> Preview:
        """What would be measured; nothing is started or written.

        Raises:
            KvrayError: the model, the engine or the profile cannot be used, or no candidate is left.
        """
        adapter = self._engine()
        check_search(self._config.search)
        check_request(self._config, adapter)
        return preview_sweep(self._config, adapter)

    @_offline_where_asked
    def run(self) -> TuneResult:
        """Measure; leave records, plan, snippet and reports in `config.output_dir`.

        Raises:
            KvrayError: before any trial for what can be known before; afterwards `AllTrialsFailedError`,
                `LimitsMissedError`, or `SweepInterruptedError` when the user pressed Ctrl-C. Records are kept in any
                case.
        """
        config, adapter = self._config, self._engine()
        store = ResultsStore(config.output_dir)
        check_search(config.search)
        check_request(config, adapter)
        if config.resume is not None:
            store.read_manifest(config.resume)
        store.check_writable()
        run_id = config.resume or _new_run_id()
        with claimed_sweep(store, run_id), _company_noticed(config, run_id):
            known_hardware(config, adapter, before_measuring=self._measuring)  # while nothing else runs
            keeper, break_off = self._measure(store, run_id, adapter)
            if break_off is None:
                keeper.end_attempt()
            result = write_up(keeper, run_id, config.profile)
        if keeper.has_moved:
            raise keeper.moved()
        if break_off is not None:
            raise break_off
        if not result.analysis.ranking.entries:
            raise no_winner(result)
        return result

    def _measuring(self) -> None:
        # What the model rules out is told first: it takes less time.
        model = self._engine().describe_model(requested_model(self._config))
        self._config.profile.fit_to_context_limit(model.max_context)
        if self._observer is not None:
            self._observer.measuring_device()

    def _engine(self) -> EngineAdapter:
        return self._adapter or get_engine(self._config.engine)

    def _measure(
        self, store: ResultsStore, run_id: str, adapter: EngineAdapter
    ) -> tuple[RecordKeeper, KvrayError | None]:
        """Run all trials that `run_id` still lacks; returns who keeps them, and the error if that was broken off."""
        config, started_s = self._config, time.monotonic()
        with (
            _log_kept_in(store, run_id) as log,
            quiet_ray(log),
            RaySession(
                address=config.address,
                scratch=log.parent,
                last_words=str(broken_off(SweepError("Ray broke down."), store, run_id)),
            ) as ray,
        ):
            # Ray takes seconds to start and does it in the background.
            preview = preview_sweep(config, adapter)
            warn_of_closed_cache()
            slots = plan_slots(
                ray.nodes(), device=preview.device.device, slots=config.slots, user_threads=openmp_threads()
            )
            attempt = prepare_attempt(
                store, config, preview, adapter, run_id=run_id, slots=slots, arguments=self._arguments
            )
            manifest, recall = attempt.manifest, attempt.recall
            # The very version that was described: the hub may get another one while the sweep runs.
            request = replace(requested_model(config), model_id=preview.model.model_id, revision=preview.model.revision)
            adapter.fetch_weights(request)
            store.write_manifest(manifest)
            keeper = RecordKeeper(store, manifest)
            recorder = _Recorder(keeper, self._observer)
            recorder.search_started(preview, manifest, recall.results)
            launches = make_launches(
                config.search, preview.space.candidates, preview.profile, preview.forecasts, seed=config.seed
            )
            course = SweepCourse(
                preview.space.candidates,
                launches=launches,
                profile=preview.profile,
                make_order=OrderMaker(
                    _plain_spec(config, preview, request, manifest),
                    reference=_reference(preview),
                    forecasts=preview.forecasts,
                    adapter=adapter,
                    threads=slots.threads,
                    scratch=log.parent,
                    trial_suffix=manifest.trial_suffix,
                    trial_ids=recall.trial_ids,
                ),
                bounds=_bounds(config, started_s),
                recorded=recall.results,
                retry=recall.retry,
                stops_early=config.search is not SearchStrategy.GRID,
                repeats_apart=config.search is SearchStrategy.MODEL,
            )
            try:
                run_sweep(course, ray=ray, slots=slots, observer=recorder, scratch=log.parent)
            except KeyboardInterrupt:
                return keeper, interruption(store, run_id)
            except SweepError as error:
                return keeper, broken_off(error, store, run_id)
            expected = launches.predictions()
            skipped = _unlaunched(course.never_launched(), TrialStatus.SKIPPED, preview, manifest, expected)
            keeper.keep_unlaunched(skipped)
        return keeper, None


class _Recorder:
    """Writes every trial the moment it ends, then passes the news on."""

    def __init__(self, keeper: RecordKeeper, observer: SearchObserver | None) -> None:
        self._keeper = keeper
        self._observer = observer

    def measuring_device(self) -> None:
        if self._observer is not None:
            self._observer.measuring_device()

    def search_started(self, preview: Preview, manifest: SweepManifest, recorded: Sequence[TrialResult]) -> None:
        rejected = [(one.candidate, one.reason) for one in preview.space.rejected]
        self._keeper.keep_unlaunched(_unlaunched(rejected, TrialStatus.REJECTED, preview, manifest))
        if self._observer is not None:
            self._observer.search_started(preview, manifest, recorded)

    def trial_started(self, spec: TrialSpec) -> None:
        if self._observer is not None:
            self._observer.trial_started(spec)

    def rung_finished(self, result: TrialResult) -> None:
        if self._observer is not None:
            self._observer.rung_finished(result)

    def trial_lost(self, spec: TrialSpec) -> None:
        if self._observer is not None:
            self._observer.trial_lost(spec)

    def trial_finished(self, result: TrialResult) -> None:
        self._keeper.keep(result)
        if self._observer is not None:
            self._observer.trial_finished(result)


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


def _reference(preview: Preview) -> ReferenceSpec:
    return ReferenceSpec(
        candidate=preview.space.baseline,
        model_revision=preview.model.revision,
        enforced=not preview.model.random_weights,
    )


def _bounds(config: TuneConfig, started_s: float) -> Bounds:
    return Bounds(
        deadline_s=None if config.budget_s is None else started_s + config.budget_s,
        budget_s=config.budget_s or 0.0,
        max_trials=config.max_trials,
        confirm_rounds=config.confirm_rounds,
    )


def _unlaunched(
    reasons: Iterable[tuple[Candidate, str]],
    status: TrialStatus,
    preview: Preview,
    manifest: SweepManifest,
    expected: Iterable[Prediction] = (),
) -> list[TrialRecord]:
    """Records of candidates that no process is started for; the latest reason replaces that of an earlier attempt."""
    columns = {one.candidate.candidate_id: _expected_columns(one) for one in expected}
    return [
        TrialRecord.of(
            candidate,
            run_id=manifest.run_id,
            trial_id=f"unlaunched-{candidate.candidate_id}{manifest.trial_suffix}",
            role=Role.SEARCH,
            model_id=manifest.model_id,
            profile=manifest.profile.name,
            status=status,
            message=reason,
            fingerprint=manifest.fingerprint_id,
            **forecast_columns(preview.forecasts.get(candidate.candidate_id)),
            **columns.get(candidate.candidate_id, {}),
        )
        for candidate, reason in reasons
    ]


def _expected_columns(prediction: Prediction) -> dict[str, float | None]:
    return {
        "expected_ttft_ms": prediction.ttft_ms,
        "expected_decode_tok_s": prediction.decode_tok_s,
        "expected_peak_mib": prediction.peak_mib,
        "expected_score_low": prediction.low,
        "expected_score_high": prediction.high,
        "win_chance": prediction.chance,
    }


def _new_run_id() -> str:
    """Sorts by time, is unique, and reads as a date: `20261124-211419-3f9a`."""
    return f"{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


@contextmanager
def _company_noticed(config: TuneConfig, run_id: str) -> Iterator[None]:
    """Warn of who else uses the device; on a cluster it is another machine's."""
    if config.address is not None:
        yield
        return
    device = detect_device(config.device).device
    with announced_sweep(device, run_id) as others:
        for sentence in (*others, *disturbers(device)):
            _logger.warning("%s", sentence)
        yield


@contextmanager
def _log_kept_in(store: ResultsStore, run_id: str) -> Iterator[Path]:
    """A file for what Ray has to say; kept beside the reports if anything was said."""
    with _temporary_folder() as folder:
        log = Path(folder) / "sweep.log"
        try:
            yield log
        finally:
            text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
            if text.strip():
                with suppress(OutputError):  # a full disk is told of where records are written
                    store.write_text(store.paths(run_id).sweep_log, redact(text))


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="kvray-")
    except OSError as error:
        raise OutputError(
            f"No temporary folder can be made: {first_line(error)}.",
            hint="Set TMPDIR to a folder that can be written and has space.",
        ) from error
