"""The records of a check, kept as they come; what a full disk refuses is tried again, and in the end put elsewhere."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from kvray.check.check_file import write_check
from kvray.check.result import CheckResult
from kvray.config import cache_dir
from kvray.errors import KvrayError, OutputError
from kvray.record import TrialResult
from kvray.report.formats import plural
from kvray.store.parquet import ResultsStore

_logger = logging.getLogger("kvray.check")


class KeptRecords:
    """Appends each trial to `store` before the next one starts. One that cannot be written waits for the next try."""

    def __init__(self, store: ResultsStore) -> None:
        self._store = store
        self._waiting: list[TrialResult] = []
        self._is_told = False

    def keep(self, result: TrialResult) -> None:
        """Write `result`, and what waits; a warning says once that this fails."""
        self._waiting.append(result)
        trouble = self._write()
        if trouble is not None and not self._is_told:
            self._is_told = True
            _logger.warning("%s Measuring goes on, and writing is tried again.", trouble)

    def _write(self) -> KvrayError | None:
        while self._waiting:
            try:
                self._store.append(self._waiting[0])
            except KvrayError as error:
                return error
            self._waiting.pop(0)
        return None

    def finish(self, run_id: str) -> OutputError | None:
        """Write what waits and merge the files; why some cannot be written, if so."""
        trouble = self._write()
        if trouble is not None:
            return OutputError(f"{plural(len(self._waiting), 'record')} could not be written: {trouble}")
        try:
            self._store.compact(run_id)
        except KvrayError as error:
            _logger.warning("The check's files were not merged: %s", error)
        return None


def write_or_rescue(result: CheckResult, path: str, trouble: OutputError | None) -> OutputError | None:
    """Write `check.json`, which has the figures of every process; where that fails, to another place.

    Args:
        trouble: why some records could not be written.

    Returns:
        What to tell of the failure; `None` where everything was written.
    """
    try:
        write_check(result, path)
    except OutputError as error:
        place = _rescued(result)
        told = f"It is kept in {str(place)!r}." if place is not None else "It is lost."
        return OutputError(f"{error.message} {told}", hint=None if trouble is None else trouble.message)
    return None if trouble is None else OutputError(f"{trouble.message} {path!r} has the figures of every process.")


def _rescued(result: CheckResult) -> Path | None:
    name = f"check-{result.now.run_id or 'unknown'}.json"
    for folder in (_cache_folder(), Path(tempfile.gettempdir()) / "kvray-rescued"):
        if folder is not None:
            try:
                write_check(result, folder / name)
            except OutputError:
                continue
            return folder / name
    return None


def _cache_folder() -> Path | None:
    try:
        return cache_dir() / "rescued"
    except RuntimeError:  # no home folder
        return None
