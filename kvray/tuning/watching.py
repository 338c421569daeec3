"""`MetricsObserver`: keeps the Prometheus metrics of a sweep at what is known of it."""

from __future__ import annotations

import math
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from typing_extensions import override

from kvray.record import TrialResult, TrialStatus
from kvray.store.manifest import SweepManifest
from kvray.sweep.metrics import Metric, Sample, SweepMetrics
from kvray.sweep.outlook import Outlook
from kvray.trial.position import PositionBoard
from kvray.trial.spec import TrialSpec
from kvray.tuning.observer import SearchObserver
from kvray.tuning.preview import Preview
from kvray.tuning.standing import LOST, RUNNING, STATES, SweepState, TrialState

_EVERY_S = 5.0
"""In which metrics are written though nothing has happened: time passes."""
_APART_S = 1.0
"""Between two writings, however many trials end. Ray sends no oftener."""


class MetricsObserver(SearchObserver):
    """Use it as a context manager, inside that of Ray's session. A thread writes, so that no trial waits for it.

    Args:
        gpus_per_slot, gpu_type: as in `SlotPlan`.
    """

    def __init__(self, *, gpus_per_slot: int, gpu_type: str | None = None) -> None:
        self._gpus_per_slot = gpus_per_slot
        self._gpu_type = gpu_type
        self._state = SweepState()
        self._preview: Preview | None = None
        self._metrics: SweepMetrics | None = None
        self._engines: tuple[str, ...] = ()
        self._news = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="kvray-metrics", daemon=True)

    def __enter__(self) -> MetricsObserver:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._news.set()
        self._thread.join()
        self._state.break_off()
        self._write(is_running=False)

    @override
    def measuring_device(self) -> None:
        pass

    @override
    def checking_code(self) -> None:
        pass

    @override
    def search_started(
        self,
        preview: Preview,
        manifest: SweepManifest,
        recorded: Sequence[TrialResult],
        positions: PositionBoard | None = None,
    ) -> None:
        self._preview = preview
        self._engines = tuple(dict.fromkeys(one.engine for one in preview.space.candidates))
        self._state.start(preview, manifest, recorded, positions)
        self._metrics = SweepMetrics(sweep_labels(manifest, self._engines, self._gpu_type))
        self._news.set()

    @override
    def outlook_changed(self, outlook: Outlook) -> None:
        self._state.foresee(outlook)

    @override
    def trial_started(self, spec: TrialSpec) -> None:
        self._state.begin(spec)
        self._news.set()

    @override
    def rung_finished(self, result: TrialResult) -> None:
        """No metric tells of a trial before it has ended."""

    @override
    def trial_lost(self, spec: TrialSpec) -> None:
        self._state.lose(spec)
        self._news.set()

    @override
    def trial_finished(self, result: TrialResult) -> None:
        if self._preview is not None:
            self._state.update(result, self._preview, ended=True)
        self._news.set()

    def _write_on(self) -> None:
        while not self._closing.is_set():
            self._news.wait(_EVERY_S)
            self._news.clear()
            self._write(is_running=True)
            self._closing.wait(_APART_S)

    def _write(self, *, is_running: bool) -> None:
        if self._metrics is not None:
            samples = sweep_samples(self._state, self._engines, self._gpus_per_slot, is_running=is_running)
            self._metrics.write(samples)


def sweep_labels(manifest: SweepManifest, engines: Sequence[str], gpu_type: str | None) -> dict[str, str]:
    """A value for each of `SWEEP_LABELS`."""
    return {
        "run_id": manifest.run_id,
        "model": manifest.shown_model(),
        "engine": ",".join(engines),
        "profile": manifest.profile.name,
        "gpu_type": gpu_type or "",
    }


def sweep_samples(
    state: SweepState, engines: Sequence[str], gpus_per_slot: int, *, is_running: bool = True
) -> list[Sample]:
    """What there is to tell of a sweep.

    Args:
        engines: whose trials are told of, those without any included.
        gpus_per_slot: as in `SlotPlan`.
    """
    figures: dict[Metric, float] = {
        Metric.RUNNING: float(is_running),
        Metric.CANDIDATES: state.total,
        Metric.TRIED: state.finished,
        Metric.PASSED: state.clock() - state.started,
        **_best_figures(state),
    }
    found = [Sample(metric=metric, value=value, labels={}) for metric, value in figures.items()]
    left_s = state.left_s() if is_running else (0.0, 0.0)
    for bound, value in zip(("least", "most"), left_s or (), strict=False):
        found.append(Sample(metric=Metric.LEFT, value=value, labels={"bound": bound}))
    return [*found, *_trial_samples(list(state.standings.values()), engines, gpus_per_slot)]


def _best_figures(state: SweepState) -> dict[Metric, float]:
    """Empty with nothing to compare."""
    gain, best, baseline = state.so_far.gain(), state.so_far.best(), state.so_far.baseline()
    if gain is None or best is None or baseline is None:
        return {}
    return {
        Metric.BEST_GAIN: math.exp(best.utility - baseline.utility),
        Metric.BEST_TTFT: 1 + gain.ttft,
        Metric.BEST_DECODE: 1 + gain.throughput,
    }


def _trial_samples(trials: Sequence[TrialState], engines: Sequence[str], gpus_per_slot: int) -> Iterator[Sample]:
    """A state in which no trial is any more has to be told as 0."""
    of_engine: dict[str, list[TrialState]] = defaultdict(list)
    for one in trials:
        of_engine[one.engine].append(one)
    for engine in dict.fromkeys((*engines, *of_engine)):
        counts, labels = Counter(one.state for one in of_engine[engine]), {"engine": engine}
        for state in STATES:
            yield Sample(metric=Metric.TRIALS, value=counts[state], labels={**labels, "status": state})
        ended = [one for one in of_engine[engine] if one.state not in (RUNNING, LOST, TrialStatus.INTERRUPTED)]
        gpu_s = math.fsum(one.wall_s * one.parallelism * gpus_per_slot for one in ended)
        yield Sample(metric=Metric.GPU_SECONDS, value=gpu_s, labels=labels)
        yield Sample(metric=Metric.TRIAL_SECONDS, value=math.fsum(one.wall_s for one in ended), labels=labels)
