"""`Recorder`: has every trial written the moment it ends, then passes the news on to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from typing_extensions import override

from kvray.analysis.sampler import Prediction
from kvray.candidate import Candidate
from kvray.measuring.recording import forecast_columns
from kvray.record import Role, TrialRecord, TrialResult, TrialStatus
from kvray.store.keeper import RecordKeeper
from kvray.store.manifest import SweepManifest
from kvray.sweep.observer import SweepObserver
from kvray.sweep.outlook import Outlook
from kvray.trial.position import PositionBoard
from kvray.trial.spec import TrialSpec
from kvray.tuning.observer import SearchObserver
from kvray.tuning.preview import Preview


class Recorder(SweepObserver):
    """The records of one attempt at a sweep, or of those of its trials that keep to GPUs of `gpu_type`. `observers` are
    told of everything afterwards; `trial_suffix` ends the ids of trials that are not launched."""

    def __init__(
        self,
        keeper: RecordKeeper,
        preview: Preview,
        manifest: SweepManifest,
        observers: Sequence[SearchObserver],
        *,
        gpu_type: str | None = None,
        trial_suffix: str = "",
    ) -> None:
        self._keeper = keeper
        self._preview = preview
        self._manifest = manifest
        self._observers = tuple(observers)
        self._gpu_type = gpu_type
        self._trial_suffix = trial_suffix

    def start(self, recorded: Sequence[TrialResult], positions: PositionBoard | None = None) -> None:
        """Tell of what is known before the first trial, as `SearchObserver.search_started` has it."""
        rejected = [(one.candidate, one.reason) for one in self._preview.space.rejected]
        self._keep_unlaunched(rejected, TrialStatus.REJECTED)
        for observer in self._observers:
            observer.search_started(self._preview, self._manifest, recorded, positions)

    def end(self, skipped: Iterable[tuple[Candidate, str]], expected: Iterable[Prediction]) -> None:
        """After the last trial: candidates that were not launched, each with the reason, and what was predicted."""
        self._keep_unlaunched(skipped, TrialStatus.SKIPPED, expected)

    @override
    def trial_started(self, spec: TrialSpec) -> None:
        self._tell(lambda observer: observer.trial_started(spec))

    @override
    def rung_finished(self, result: TrialResult) -> None:
        self._tell(lambda observer: observer.rung_finished(result))

    @override
    def trial_lost(self, spec: TrialSpec) -> None:
        self._tell(lambda observer: observer.trial_lost(spec))

    @override
    def trial_finished(self, result: TrialResult) -> None:
        """Observers are told once the trial is written. They are not told of interrupted trials, because the message
        that ends the sweep names them."""
        if result.record.status is TrialStatus.INTERRUPTED:
            self._keep_interrupted(result)
        else:
            self._keeper.keep_soon(result, partial(self._tell_now, lambda observer: observer.trial_finished(result)))

    def attend(self, is_over: bool) -> None:
        """Tell of trials that have been written meanwhile; if the sweep is over, wait for all."""
        if is_over:
            self._keeper.catch_up()
        else:
            self._keeper.tell_written()

    def _tell(self, news: Callable[[SearchObserver], None]) -> None:
        """After the end of a trial that is still being written."""
        self._keeper.when_written(partial(self._tell_now, news))

    def _tell_now(self, news: Callable[[SearchObserver], None]) -> None:
        for observer in self._observers:
            news(observer)

    def _keep_interrupted(self, result: TrialResult) -> None:
        """Keep the trial, unless it was to replace a recorded failure, which then stays."""
        if all(one.record.trial_id != result.record.trial_id for one in self._keeper.results):
            self._keeper.keep(result)

    @override
    def outlook_changed(self, outlook: Outlook) -> None:
        outlook = replace(outlook, gpu_type=self._gpu_type)
        self._tell(lambda observer: observer.outlook_changed(outlook))

    def _keep_unlaunched(
        self, reasons: Iterable[tuple[Candidate, str]], status: TrialStatus, expected: Iterable[Prediction] = ()
    ) -> None:
        """The latest reason replaces that of an earlier attempt."""
        predicted = {one.candidate.candidate_id: _expected_columns(one) for one in expected}
        self._keeper.keep_unlaunched(
            [
                self._unlaunched(candidate, status, reason).with_(**predicted.get(candidate.candidate_id, {}))
                for candidate, reason in reasons
            ]
        )

    def _unlaunched(self, candidate: Candidate, status: TrialStatus, reason: str) -> TrialRecord:
        manifest = self._manifest
        return TrialRecord.of(
            candidate,
            run_id=manifest.run_id,
            trial_id=f"unlaunched-{candidate.candidate_id}{self._trial_suffix}",
            role=Role.SEARCH,
            model_id=manifest.model_id,
            profile=manifest.profile.name,
            status=status,
            message=reason,
            fingerprint=manifest.fingerprint_id,
            gpu_type=self._gpu_type,
            **forecast_columns(self._preview.forecasts.get(candidate.candidate_id)),
        )


def _expected_columns(prediction: Prediction) -> dict[str, float | None]:
    return {
        "expected_ttft_ms": prediction.ttft_ms,
        "expected_decode_tok_s": prediction.decode_tok_s,
        "expected_peak_mib": prediction.peak_mib,
        "expected_score_low": prediction.low,
        "expected_score_high": prediction.high,
        "win_chance": prediction.chance,
    }
