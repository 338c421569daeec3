"""What a watch exports to Prometheus, computed from its history; the sink `Prometheus` writes and serves it."""

from __future__ import annotations

import enum
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from kvray.analysis.comparison import ComparedMetric
from kvray.check.watch.events import EventKind, Observation, WatchEvent, WatchIdentity, WatchState
from kvray.check.watch.observed import is_calm, skipped_since, state_of, stored_events
from kvray.check.watch.sinks.endpoint import Endpoint
from kvray.check.watch.sinks.exposition import Sample, exposition
from kvray.check.watch.trouble import Trouble
from kvray.errors import InvalidValueError, OutputError
from kvray.files.file_systems import write_whole
from kvray.report import formats
from kvray.store.skipped import SkippedTurn

SUFFIX = ".prom"
"""Node exporter's textfile collector reads no others."""
_MIB, _GIGA = 1024.0**2, 1e9
_logger = logging.getLogger("kvray.watch")


class WatchMetric(enum.Enum):
    """A metric that a watch exports; each has the labels `watch_id`, `model`, `engine`, `profile` and `device`."""

    LAST = "kvray_watch_last_observation_timestamp_seconds"
    LAST_TURN = "kvray_watch_last_turn_timestamp_seconds"
    SKIPPED = "kvray_watch_skipped_since_last_observation"
    OBSERVATIONS = "kvray_watch_observations_total"
    ALERTS = "kvray_watch_alerts_total"
    STATE = "kvray_watch_state"
    TTFT = "kvray_watch_time_to_first_token_seconds"
    DECODE = "kvray_watch_decode_tokens_per_second"
    PEAK = "kvray_watch_peak_memory_bytes"
    COPY = "kvray_watch_anchor_copy_bytes_per_second"
    MATMUL = "kvray_watch_anchor_matmul_flop_per_second"

    @property
    def exported_name(self) -> str:
        """As Prometheus sees it."""
        return self.value

    @property
    def type(self) -> str:
        """`gauge` or `counter`."""
        return "counter" if self.value.endswith("_total") else "gauge"

    @property
    def help(self) -> str:
        """What it tells, in one sentence."""
        return _HELP[self]


_HELP = {
    WatchMetric.LAST: "When the last observation began, in Unix time.",
    WatchMetric.LAST_TURN: "When the last turn was, in Unix time: an observation, or a turn that was skipped.",
    WatchMetric.SKIPPED: "Turns since the last observation, or of all where there is none, that were skipped because "
    "others use the machine.",
    WatchMetric.OBSERVATIONS: "Observations in the history, by outcome: calm, disturbed, or not_measured.",
    WatchMetric.ALERTS: "Alerts in the history, by kind and metric; of kind error: it can no longer be measured.",
    WatchMetric.STATE: "1 for the state that a metric, or the machine, is in; 0 for the others.",
    WatchMetric.TTFT: "Time to first token of the last observation, geometric mean over the profile's cells.",
    WatchMetric.DECODE: "Decode throughput of the last observation, geometric mean over the profile's cells.",
    WatchMetric.PEAK: "Peak memory of the last observation.",
    WatchMetric.COPY: "Anchor: rate at which the machine copies memory, whatever the libraries.",
    WatchMetric.MATMUL: "Anchor: rate at which the machine multiplies matrices, whatever the libraries.",
}


def samples(
    observations: Sequence[Observation], identity: WatchIdentity, skipped: Sequence[SkippedTurn] = ()
) -> list[Sample]:
    """All metrics of one watch. Before the first observation these are counts, and when a turn was last skipped.

    Args:
        identity: of the watch, for the labels until there is an observation.
        skipped: turns that were skipped, oldest first.
    """
    last = observations[-1] if observations else None
    known = last or identity
    about = {
        "watch_id": known.watch_id,
        "model": known.model_id,
        "engine": known.engine,
        "profile": known.profile,
        "device": known.device_name,
    }
    labels = {key: formats.clean_line(value) for key, value in about.items()}
    return [
        Sample(metric=metric, value=value, labels={**labels, **further})
        for metric, value, further in (
            *_counted(observations),
            *_turns(last, skipped),
            *(() if last is None else (*_states(last), *_figures(last))),
        )
    ]


class Prometheus:
    """A sink that brings the metrics up to date with each observation.

    Args:
        history: all observations so far, oldest first, that of the event included.
        identity: of the watch.
        skipped: the turns that were skipped so far.
        file: for node exporter's textfile collector; its name ends in `.prom`.
        endpoint: serves them on this machine's loopback; opened and closed here.

    Raises:
        InvalidValueError: the file's name is not read by node exporter.
    """

    def __init__(
        self,
        history: Callable[[], Sequence[Observation]],
        identity: WatchIdentity,
        *,
        skipped: Callable[[], Sequence[SkippedTurn]] = tuple,
        file: Path | None = None,
        endpoint: Endpoint | None = None,
    ) -> None:
        if file is not None and file.suffix != SUFFIX:
            raise InvalidValueError(
                f"--prometheus-file {str(file)!r}: node exporter reads only files whose names end in {SUFFIX}.",
                hint=f"Name it {file.with_suffix(SUFFIX).name}, for instance.",
            )
        self._history, self._file, self._endpoint = history, file, endpoint
        self._identity, self._skipped = identity, skipped
        self._trouble = Trouble()

    def open(self) -> None:
        """Publish what the history holds already.

        Raises:
            OutputError: the file cannot be written, or the endpoint cannot listen.
        """
        if self._endpoint is not None:
            self._endpoint.open()
            _logger.info("Metrics for Prometheus are at %s.", self._endpoint.url)
        try:
            self._publish()
        except OSError as error:
            raise OutputError(
                f"Cannot write {str(self._file)!r} for Prometheus: {error.strerror or error}.",
                hint="Name a file in a folder that exists and that this user may write to.",
            ) from error

    def tell(self, event: WatchEvent) -> None:
        """Publish anew. What cannot be written is said, once; it is written with the next observation."""
        if not event.is_a_turn:
            return
        try:
            self._publish()
        except OSError as error:
            why = error.strerror or error
            self._trouble.say(f"Cannot write {self._file} for Prometheus: {why}. Measuring goes on.")
        else:
            self._trouble.is_over()

    def close(self) -> None:
        """Stop serving. The file stays: it tells when the last observation was."""
        if self._endpoint is not None:
            self._endpoint.close()

    def _publish(self) -> None:
        text = exposition(samples(self._history(), self._identity, self._skipped()))
        if self._endpoint is not None:
            self._endpoint.publish(text)
        if self._file is not None:
            write_whole(self._file, text.encode())


_Rows = Iterator[tuple[WatchMetric, float, Mapping[str, str]]]


def _counted(observations: Sequence[Observation]) -> _Rows:
    if observations:
        yield WatchMetric.LAST, observations[-1].observed_at.timestamp(), {}
    outcomes = Counter(
        "not_measured" if one.processes == 0 else "calm" if is_calm(one) else "disturbed" for one in observations
    )
    for outcome in ("calm", "disturbed", "not_measured"):
        yield WatchMetric.OBSERVATIONS, outcomes[outcome], {"outcome": outcome}
    told = [event for one in observations for event in stored_events(one) if event.is_alert]
    alerts = Counter((event.kind, _subject(event)) for event in told)
    for kind in (one for one in EventKind if one.is_alert):
        subjects = ("machine",) if kind is EventKind.MACHINE else tuple(metric.value for metric in ComparedMetric)
        for subject in subjects:
            yield WatchMetric.ALERTS, alerts[kind, subject], {"kind": kind.value, "metric": subject}
    failures = sum(one.kind is EventKind.ERROR for one in told)
    yield WatchMetric.ALERTS, failures, {"kind": EventKind.ERROR.value, "metric": "all"}


def _turns(last: Observation | None, skipped: Sequence[SkippedTurn]) -> _Rows:
    since = skipped if last is None else skipped_since(last, skipped)
    moments = [*([] if last is None else [last.observed_at]), *(one.at for one in since)]
    if moments:
        yield WatchMetric.LAST_TURN, moments[-1].timestamp(), {}
    yield WatchMetric.SKIPPED, len(since), {}


def _subject(event: WatchEvent) -> str:
    return "machine" if event.metric is None else event.metric.value


def _states(last: Observation) -> _Rows:
    machine = last.machine_state if last.machine_state in list(WatchState) else WatchState.OK
    standing = {metric.value: state_of(metric, last).value for metric in ComparedMetric} | {"machine": str(machine)}
    for metric, word in standing.items():
        for state in WatchState:
            yield WatchMetric.STATE, float(word == state), {"metric": metric, "state": state.value}


def _figures(last: Observation) -> _Rows:
    pairs = (
        (WatchMetric.TTFT, last.ttft_ms, 1e-3),
        (WatchMetric.DECODE, last.decode_tok_s, 1.0),
        (WatchMetric.PEAK, last.peak_mib, _MIB),
        (WatchMetric.COPY, last.copy_gb_s, _GIGA),
        (WatchMetric.MATMUL, last.matmul_gflop_s, _GIGA),
    )
    for metric, value, factor in pairs:
        if value is not None:
            yield metric, value * factor, {}
