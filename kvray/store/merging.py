"""`Merger`: merges the files of single trials while a sweep runs, so that no reader has to open ten thousand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from kvray.errors import OutputError, ResultsError
from kvray.record import TrialResult
from kvray.store.parquet import ResultsStore, TrialFiles

MERGED_AT = 256
"""Trials. A file of so many rows is opened in the time of a few of one row."""


class Merger:
    """Merges what one process appends to the sweep `run_id` in `store`, every `MERGED_AT` trials.

    Args:
        recorded: trials that lie there already. One that is measured again keeps a file of its own until the sweep
            ends, because that replaces the earlier one.
    """

    def __init__(self, store: ResultsStore, run_id: str, recorded: Iterable[str]) -> None:
        self._store = store
        self._run_id = run_id
        self._recorded = set(recorded)
        self._keeps_empty = store.has_runs(run_id)
        self._waiting: dict[str, tuple[TrialFiles, TrialResult]] = {}

    def appended(self, files: TrialFiles, result: TrialResult) -> None:
        """A trial lies there now, in `files`.

        What cannot be merged stays as it is, and is merged when the sweep ends.
        """
        trial_id = result.record.trial_id
        if trial_id in self._recorded or (self._keeps_empty and not result.runs):
            return
        self._waiting[trial_id] = files, result
        if len(self._waiting) < MERGED_AT:
            return
        waiting, self._waiting = self._waiting, {}
        self._recorded |= waiting.keys()
        with contextlib.suppress(OutputError, ResultsError):
            self._store.merge(self._run_id, dict(waiting.values()))
