"""`Place`: a results folder as `RecordKeeper` fills it, the given one or a second one."""

from __future__ import annotations

import contextlib

from kvray.errors import ResultsError
from kvray.record import TrialResult
from kvray.store.manifest import SweepManifest
from kvray.store.merging import Merger
from kvray.store.parquet import ResultsStore, without_overtaken


class Place:
    """A results folder, and what has yet to be written to it.

    Attributes:
        lacks: ids of trials in `held`.
    """

    def __init__(self, store: ResultsStore, held: dict[str, TrialResult], merger: Merger | None = None) -> None:
        self.store = store
        self._merger = merger
        self.lacks: set[str] = set()
        self.lacks_manifest = False
        self._held = held

    def holds(self, manifest: SweepManifest) -> bool:
        """Whether it holds such a sweep (still)."""
        return self.store.has_manifest(manifest.run_id)

    def write(self, manifest: SweepManifest, *, is_known_to_be_there: bool = False) -> None:
        """Write what it lacks. That the sweep has ended is written last: then nothing is missing.

        Raises:
            OutputError, ResultsError
        """
        self.lacks_manifest = self.lacks_manifest or not (is_known_to_be_there or self.holds(manifest))
        if not manifest.is_complete:
            self._write_manifest(manifest)
        self._write_records()
        self._write_manifest(manifest)

    def _write_manifest(self, manifest: SweepManifest) -> None:
        if self.lacks_manifest:
            self.store.write_manifest(manifest)
            self.lacks_manifest = False

    def _write_records(self) -> None:
        unlaunched = [name for name in self.lacks if not self._held[name].record.status.was_launched]
        for name in sorted(self.lacks.difference(unlaunched)):
            files = self.store.append(self._held[name])
            self.lacks.discard(name)
            if self._merger is not None:
                self._merger.appended(files, self._held[name])
        self.store.append_many([self._held[name].record for name in unlaunched])
        self.lacks.difference_update(unlaunched)

    def doubt_everything(self, manifest: SweepManifest) -> None:
        """Look what really lies there; a file may have been taken away."""
        expected = without_overtaken([one.record for one in self._held.values()])
        with contextlib.suppress(ResultsError):
            there = {one.record.trial_id for one in self.store.read(manifest.run_id)}
            self.lacks |= {record.trial_id for record in expected} - there
