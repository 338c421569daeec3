"""The sinks that a user asked for: all of them checked, before one is opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvray.check.watch.events import Observation, Sink, WatchIdentity
from kvray.check.watch.page import WatchPage
from kvray.check.watch.sinks.deliveries import Deliveries
from kvray.check.watch.sinks.endpoint import Endpoint
from kvray.check.watch.sinks.exec_command import ExecCommand
from kvray.check.watch.sinks.log_line import LogLine
from kvray.check.watch.sinks.prometheus import Prometheus
from kvray.check.watch.sinks.webhook import Webhook
from kvray.errors import InvalidValueError
from kvray.files.remote import is_uri, without_secrets
from kvray.store.history import WatchHistory

PAGE = "watch.html"
WAITING_FOR_WEBHOOK, WAITING_FOR_COMMAND = "waiting_webhook.json", "waiting_exec.json"


@dataclass(frozen=True, kw_only=True)
class AskedSinks:
    """Options of `kvray watch`, as they were typed.

    Attributes:
        webhook: URL of `--webhook`.
        command: line of `--exec`.
        prometheus_file: path of `--prometheus-file`; node exporter reads no URI.
        listen: address of `--listen`.
    """

    webhook: str | None = None
    command: str | None = None
    prometheus_file: str | None = None
    listen: str | None = None


def open_sinks(
    asked: AskedSinks,
    *,
    folder: Path,
    history: Callable[[], Sequence[Observation]],
    identity: WatchIdentity,
    once: bool = False,
) -> tuple[Sink, ...]:
    """The sinks, ready to be told: log line and page always, the others as asked for.

    Args:
        folder: the watch's own, which exists: for the page, and for alerts that wait.
        history: all observations so far, oldest first.
        identity: of the watch.
        once: the command ends after one observation.

    Raises:
        InvalidValueError: an option cannot be used.
        OutputError: Prometheus' file cannot be written, or its port is in use.
    """
    if once and asked.listen is not None:
        raise InvalidValueError(
            "--listen serves metrics while the watch runs, and with --once it ends at once.",
            hint="Use --prometheus-file, which node exporter reads.",
        )
    deliveries = []
    if asked.webhook is not None:
        deliveries.append(Deliveries(Webhook(asked.webhook), folder / WAITING_FOR_WEBHOOK))
    if asked.command is not None:
        deliveries.append(Deliveries(ExecCommand(asked.command), folder / WAITING_FOR_COMMAND))
    endpoint = None if asked.listen is None else Endpoint(asked.listen)
    skipped = WatchHistory(folder).skipped
    prometheus = Prometheus(history, identity, skipped=skipped, file=_local(asked.prometheus_file), endpoint=endpoint)
    prometheus.open()
    for one in deliveries:
        one.start()
    return (LogLine(), *deliveries, prometheus, WatchPage(folder / PAGE, history, skipped))


def _local(prometheus_file: str | None) -> Path | None:
    if prometheus_file is None:
        return None
    if is_uri(prometheus_file):
        raise InvalidValueError(
            f"--prometheus-file {without_secrets(prometheus_file)!r}: node exporter reads files of its machine only.",
            hint="Name a local file.",
        )
    return Path(prometheus_file)
