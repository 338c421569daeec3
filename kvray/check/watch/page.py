"""`WatchPage`: keeps `watch.html` up to date, one file that opens offline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kvray.check.watch.events import Observation, WatchEvent
from kvray.check.watch.page_charts import charts
from kvray.check.watch.page_info import page_info
from kvray.check.watch.trouble import Trouble
from kvray.files.file_systems import write_whole
from kvray.report.html import render_page
from kvray.store.skipped import SkippedTurn


class WatchPage:
    """A sink that renders the page anew with each observation, and with each turn that was skipped.

    Args:
        file: replaced whole; a reader never sees half of it.
        history: all observations so far, oldest first, that of the event included.
        skipped: the turns that were skipped so far.
    """

    def __init__(
        self,
        file: Path,
        history: Callable[[], Sequence[Observation]],
        skipped: Callable[[], Sequence[SkippedTurn]] = tuple,
    ) -> None:
        self._file, self._history, self._skipped = file, history, skipped
        self._rendered = ""
        self._trouble = Trouble()

    def tell(self, event: WatchEvent) -> None:
        """Render the page, once for each turn. What cannot be written is said, once."""
        turn = event.event_id if event.observation is None else event.observation.observation_id
        if not event.is_a_turn or turn == self._rendered:
            return
        self._rendered = turn
        observations = self._history()
        if not observations:
            return
        try:
            write_whole(self._file, render_watch(observations, self._skipped()).encode())
        except OSError as error:
            why = error.strerror or error
            self._trouble.say(f"Cannot write {self._file}: {why}. The history goes on without it.")
        else:
            self._trouble.is_over()

    def close(self) -> None:
        """The page is whole already."""


def render_watch(observations: Sequence[Observation], skipped: Sequence[SkippedTurn] = ()) -> str:
    """The whole page of a watch with at least one observation, about 5 MB; write it as UTF-8."""
    return render_page("watch.html.j2", info=page_info(observations, skipped), figures=charts(observations))
