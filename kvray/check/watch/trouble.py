"""`Trouble`: what stands in a sink's way, said once until it is over."""

from __future__ import annotations

import logging

_logger = logging.getLogger("kvray.watch")


class Trouble:
    """The trouble of one sink."""

    def __init__(self) -> None:
        self._said = ""

    def is_over(self) -> None:
        """Nothing stands in the way now."""
        self._said = ""

    def say(self, text: str) -> None:
        """Warn of it, unless that is what was said last."""
        if text != self._said:
            _logger.warning("%s", text)
        self._said = text
