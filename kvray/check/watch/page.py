"""`WatchPage`: keeps `watch.html` up to date, one file that opens offline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from kvray.check.watch.events import Observation, WatchEvent
from kvray.check.watch.page_charts import charts
from kvray.check.watch.page_info import page_info
from kvray.files.file_systems import write_whole
from kvray.report.html import render_page

_logger = logging.getLogger("kvray.watch")


class WatchPage:
    """A sink that renders the page anew with each event that has an observation.

    Args:
        file: replaced whole; a reader never sees half of it.
        history: all observations so far, oldest first, that of the event included.
    """

    def __init__(self, file: Path, history: Callable[[], Sequence[Observation]]) -> None:
        self._file, self._history = file, history
        self._rendered = ""
        self._told = ""

    def tell(self, event: WatchEvent) -> None:
        """Render the page, once for each observation. What cannot be written is said, once."""
        if event.observation is None or event.observation.observation_id == self._rendered:
            return
        self._rendered = event.observation.observation_id
        observations = self._history()
        if not observations:
            return
        try:
            write_whole(self._file, render_watch(observations).encode())
        except OSError as error:
            text = f"Cannot write {self._file}: {error.strerror or error}. The history goes on without it."
            if text != self._told:
                _logger.warning("%s", text)
            self._told = text
        else:
            self._told = ""

    def close(self) -> None:
        """The page is whole already."""


def render_watch(observations: Sequence[Observation]) -> str:
    """The whole page of a watch with at least one observation, about 5 MB; write it as UTF-8."""
    return render_page("watch.html.j2", info=page_info(observations), figures=charts(observations))
