"""`LogLine`: what a watch says on standard error, one line an event."""

from __future__ import annotations

import logging

from kvray.check.watch.events import EventKind, WatchEvent, WatchState
from kvray.report import formats

_logger = logging.getLogger("kvray.watch")


class LogLine:
    """A sink for logs and for who looks on: alerts and errors are warnings, all else is information."""

    def tell(self, event: WatchEvent) -> None:
        """Say the event's sentence."""
        is_alarm = event.kind.is_alert and event.state is not WatchState.RECOVERED
        level = logging.WARNING if is_alarm or event.kind is EventKind.ERROR else logging.INFO
        _logger.log(level, "%s", formats.clean_line(event.text))

    def close(self) -> None:
        """Nothing is under way."""
