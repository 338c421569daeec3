"""Metrics of a watch: read by Prometheus' own parser, from the file and from the endpoint."""

from __future__ import annotations

import logging
import socket
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from watch_histories import IDENTITY, at, event, not_measured, observation, regression, with_events

from kvray.check.watch.events import EventKind, Observation
from kvray.check.watch.sinks.endpoint import Endpoint
from kvray.check.watch.sinks.exposition import exposition
from kvray.check.watch.sinks.prometheus import Prometheus, WatchMetric, samples
from kvray.errors import InvalidValueError, OutputError
from kvray.store.skipped import SkippedTurn

pytestmark = pytest.mark.spawns
Found = dict[tuple[str, frozenset[str]], float]


def parsed(text: str) -> Found:
    """Values by name and the labels' values that tell samples of one watch apart."""
    found: Found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type in ("gauge", "counter")
        for sample in family.samples:
            assert {"watch_id", "model", "engine", "profile", "device"} <= set(sample.labels)
            further = {"outcome", "kind", "metric", "state"} & set(sample.labels)
            found[sample.name, frozenset(sample.labels[name] for name in further)] = sample.value
    return found


def exported(history: Sequence[Observation]) -> Found:
    return parsed(exposition(samples(history, IDENTITY)))


def test_prometheus_reads_states_figures_counts_and_the_anchor() -> None:
    history = [one for one in regression(20, 10) if one.processes]
    history = [*history[:-1], observation(20, ttft_ms=134.4, ttft_state="confirmed", disturbed=True), not_measured(21)]
    history[-2:] = [history[-1], history[-2]]
    found = exported(history)
    assert found["kvray_watch_time_to_first_token_seconds", frozenset()] == pytest.approx(0.1344)
    assert found["kvray_watch_decode_tokens_per_second", frozenset()] == 41.0
    assert found["kvray_watch_peak_memory_bytes", frozenset()] == 812 * 1024**2
    assert found["kvray_watch_anchor_copy_bytes_per_second", frozenset()] == pytest.approx(11.2e9)
    assert found["kvray_watch_state", frozenset({"ttft", "confirmed"})] == 1
    assert found["kvray_watch_state", frozenset({"ttft", "ok"})] == 0
    assert found["kvray_watch_state", frozenset({"machine", "ok"})] == 1
    assert found["kvray_watch_observations_total", frozenset({"not_measured"})] == 1
    assert found["kvray_watch_alerts_total", frozenset({"confirmed", "ttft"})] == 1
    assert found["kvray_watch_alerts_total", frozenset({"recovered", "ttft"})] == 0
    last = history[-1].observed_at.timestamp()
    assert found["kvray_watch_last_observation_timestamp_seconds", frozenset()] == last
    assert {name for name, _ in found} == {metric.exported_name for metric in WatchMetric}


def test_what_was_not_measured_has_no_sample() -> None:
    names = {name for name, _ in exported([not_measured(0)])}
    assert "kvray_watch_time_to_first_token_seconds" not in names
    assert "kvray_watch_anchor_copy_bytes_per_second" in names


def test_before_the_first_observation_a_scrape_tells_of_skipped_turns() -> None:
    found = exported([])
    assert found["kvray_watch_skipped_since_last_observation", frozenset()] == 0
    assert found["kvray_watch_observations_total", frozenset({"calm"})] == 0
    assert "kvray_watch_last_turn_timestamp_seconds" not in {name for name, _ in found}
    skipped = [SkippedTurn(at=at(number), reason="busy") for number in (1, 2)]
    found = parsed(exposition(samples([], IDENTITY, skipped)))
    assert found["kvray_watch_skipped_since_last_observation", frozenset()] == 2
    assert found["kvray_watch_last_turn_timestamp_seconds", frozenset()] == at(2).timestamp()
    assert not {"kvray_watch_state", "kvray_watch_last_observation_timestamp_seconds"} & {name for name, _ in found}


def test_the_first_observation_continues_the_series() -> None:
    before, after = (
        next(one for one in samples(history, IDENTITY) if one.metric is WatchMetric.SKIPPED)
        for history in ([], [observation(0, watch_id=IDENTITY.watch_id)])
    )
    assert before.labels == after.labels


def test_turns_that_were_skipped_since_the_last_observation_are_told() -> None:
    history = [observation(0), observation(4)]
    skipped = [SkippedTurn(at=at(number), reason="busy") for number in (1, 5, 6)]
    found = parsed(exposition(samples(history, IDENTITY, skipped)))
    assert found["kvray_watch_skipped_since_last_observation", frozenset()] == 2
    assert found["kvray_watch_last_turn_timestamp_seconds", frozenset()] == at(6).timestamp()
    assert found["kvray_watch_last_observation_timestamp_seconds", frozenset()] == at(4).timestamp()
    found = exported(history)
    assert found["kvray_watch_skipped_since_last_observation", frozenset()] == 0
    assert found["kvray_watch_last_turn_timestamp_seconds", frozenset()] == at(4).timestamp()


def test_what_can_no_longer_be_measured_counts_as_an_alert() -> None:
    failed = not_measured(1)
    error = event(1, EventKind.ERROR, None, change_point=None, observation=failed)
    history = [observation(0), with_events(failed, [error]), not_measured(2)]
    found = exported(history)
    assert found["kvray_watch_alerts_total", frozenset({"error", "all"})] == 1
    assert found["kvray_watch_alerts_total", frozenset({"machine"})] == 0
    assert exported([observation(0)])["kvray_watch_alerts_total", frozenset({"error", "all"})] == 0


def test_the_file_is_written_anew_when_a_turn_is_skipped(tmp_path: Path) -> None:
    skipped: list[SkippedTurn] = []
    file = tmp_path / "kvray.prom"
    sink = Prometheus(lambda: [observation(0)], IDENTITY, skipped=lambda: skipped, file=file)
    sink.open()
    skipped.append(SkippedTurn(at=at(1), reason="busy"))
    sink.tell(event(1, EventKind.SKIPPED, None))
    assert parsed(file.read_text())["kvray_watch_skipped_since_last_observation", frozenset()] == 1


def test_labels_from_outside_are_escaped_and_kept_on_their_line() -> None:
    evil = 'C:\\models\\"x"\n{y="z"} 1\n# HELP'
    text = exposition(samples([observation(0, model_id=evil, device_name="\ud800")], IDENTITY))
    (family, *_) = text_string_to_metric_families(text)
    assert family.samples[0].labels["model"] == 'C:\\models\\"x" {y="z"} 1 # HELP'
    assert family.samples[0].labels["device"] == "?"
    text.encode()


def test_the_file_is_replaced_whole_with_each_observation(tmp_path: Path) -> None:
    history: list[Observation] = []
    file = tmp_path / "kvray.prom"
    sink = Prometheus(lambda: history, IDENTITY, file=file)
    sink.open()
    assert parsed(file.read_text())["kvray_watch_observations_total", frozenset({"calm"})] == 0
    history.append(observation(0))
    sink.tell(event(0, EventKind.OBSERVATION, observation=history[0]))
    sink.close()
    assert parsed(file.read_text())["kvray_watch_observations_total", frozenset({"calm"})] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["kvray.prom"]


def test_a_file_that_cannot_be_written_is_refused_at_first_and_later_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("kvray").propagate = True
    history = [observation(0)]
    with pytest.raises(OutputError, match=r"Cannot write '.*missing/kvray\.prom' for Prometheus: No such file"):
        Prometheus(lambda: history, IDENTITY, file=tmp_path / "missing" / "kvray.prom").open()
    with pytest.raises(InvalidValueError, match=r"names end in \.prom\. Name it kvray\.prom, for instance"):
        Prometheus(lambda: history, IDENTITY, file=tmp_path / "kvray.txt")
    folder = tmp_path / "collector"
    folder.mkdir()
    sink = Prometheus(lambda: history, IDENTITY, file=folder / "kvray.prom")
    sink.open()
    (folder / "kvray.prom").unlink()
    folder.rmdir()
    for number in range(2):
        sink.tell(event(number, EventKind.OBSERVATION, observation=observation(number)))
    assert [record.getMessage() for record in caplog.records] == [
        f"Cannot write {folder / 'kvray.prom'} for Prometheus: No such file or directory. Measuring goes on."
    ]


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0"])
def test_the_endpoint_serves_the_newest_metrics_on_loopback(listen: str) -> None:
    history = [observation(0)]
    endpoint = Endpoint(listen)
    sink = Prometheus(lambda: history, IDENTITY, endpoint=endpoint)
    sink.open()
    try:
        history.append(with_events(observation(1), [event(1, EventKind.CONFIRMED)]))
        sink.tell(event(1, EventKind.OBSERVATION, observation=history[1]))
        with urllib.request.urlopen(endpoint.url, timeout=10) as answer:
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            found = parsed(answer.read().decode())
        assert found["kvray_watch_observations_total", frozenset({"calm"})] == 2
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(endpoint.url.replace("/metrics", "/"), timeout=10)
        place = endpoint.url.removeprefix("http://").removesuffix("/metrics")
        with pytest.raises(OutputError, match=f"Cannot listen on {place} for Prometheus: Address already in use"):
            Endpoint(place).open()
    finally:
        sink.close()


def test_a_client_that_sends_nothing_keeps_no_other_waiting() -> None:
    endpoint = Endpoint("127.0.0.1:0")
    endpoint.open()
    try:
        host, port = endpoint.url.removeprefix("http://").removesuffix("/metrics").split(":")
        with socket.create_connection((host, int(port))), urllib.request.urlopen(endpoint.url, timeout=10) as answer:
            assert answer.status == 200
    finally:
        endpoint.close()


@pytest.mark.parametrize(
    ("listen", "message"),
    [
        ("0.0.0.0:9090", "would be open to other machines"),
        ("[::]:9090", "would be open to other machines"),
        ("192.168.1.7:9090", "would be open to other machines"),
        ("example.com:9090", "'example.com' is no IP address"),
        (":9090", "is no HOST:PORT"),
        ("9090", "is no HOST:PORT"),
        ("127.0.0.1:99999", "is no HOST:PORT"),
        ("127.0.0.1", "is no HOST:PORT"),
    ],
)
def test_only_an_address_of_the_loopback_is_taken(listen: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        Endpoint(listen)
