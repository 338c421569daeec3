"""`LogLine`: what a watch says on standard error, one line an event."""

from __future__ import annotations

import logging

from kvray.check.watch.events import EventKind, WatchEvent
from kvray.report import formats

_logger = logging.getLogger("kvray.watch")


class LogLine:
    """A sink for logs and for who looks on: alerts and errors are warnings, all else is information."""

    def tell(self, event: WatchEvent) -> None:
        """Say the event's sentence."""
        is_serious = event.kind is EventKind.ERROR or (event.kind.is_alert and event.kind is not EventKind.RECOVERED)
        _logger.log(logging.WARNING if is_serious else logging.INFO, "%s", formats.clean_line(event.text))

    def close(self) -> None:
        """Nothing is under way."""
