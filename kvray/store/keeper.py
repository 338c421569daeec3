"""`RecordKeeper`: keeps what a sweep measures, whatever the disk does meanwhile.

Every record is written the moment it comes, in a thread of its own, while measuring goes on. What cannot be written
stays in memory, is tried again with further ones, and goes to a second place until then: the cache folder, or else the
folder for temporary files.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import math
import shlex
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from kvray.config import cache_dir
from kvray.errors import KvrayError, OutputError, ResultsError
from kvray.record import TrialRecord, TrialResult
from kvray.store.behind import WriteBehind
from kvray.store.claim import Claim
from kvray.store.manifest import SweepManifest
from kvray.store.merging import Merger
from kvray.store.parquet import ResultsStore
from kvray.store.place import Place

_logger = logging.getLogger("kvray.store")
_RESCUED = "rescued"
_QUICK_S = 1.0
_PATIENCE = 10
"""A place that took longer than `_QUICK_S` to fail is left alone for so many times as long: a service that hangs must
not keep the sweep from measuring."""
_WAIT_S = 2.0
"""So long a record holds up the sweep in an object store at most; a healthy one has it by then."""


class RecordKeeper:
    """Holds one sweep, in memory and in `store`, whose manifest must lie there already. One thread uses it. `claim` is
    what keeps other processes from writing there.

    Another thread writes, and only it touches the places and `_trouble` until `finish_writing` has returned.

    Nothing but `settle` raises: a sweep must not end because a disk does.
    """

    def __init__(self, store: ResultsStore, manifest: SweepManifest, claim: Claim | None = None) -> None:
        self._claim = claim
        self._manifest = manifest
        self._held = {one.record.trial_id: one for one in store.read(manifest.run_id)}
        merger = Merger(store, manifest.run_id, self._held) if store.is_local else None
        self._first = Place(store, self._held, merger)
        self._second: Place | None = None
        self._trouble: KvrayError | None = None
        self._try_again_at = 0.0
        self._new: deque[str] = deque()
        self._behind = WriteBehind(self._save)
        self._waits_until = -math.inf
        self._was_slow = False
        self._then: deque[Callable[[], None]] = deque()
        """What is to be called as soon as all that was kept has been written."""

    @property
    def results(self) -> tuple[TrialResult, ...]:
        """All trials of the sweep, those of earlier attempts included, in no particular order."""
        return tuple(self._held.values())

    @property
    def run_id(self) -> str:
        """Id of the sweep."""
        return self._manifest.run_id

    @property
    def is_complete(self) -> bool:
        """Whether the last attempt has come to its end."""
        return self._manifest.is_complete is True

    @property
    def place(self) -> ResultsStore:
        """Where all that has been kept lies now; the given store, if it lies in memory only."""
        return self._second.store if self.has_moved and self._second is not None else self._first.store

    @property
    def has_moved(self) -> bool:
        """Whether that is not the given store: it could not be written."""
        return self._trouble is not None

    @property
    def unwritten(self) -> int:
        """Trials that lie in memory alone, because the service is slow or nothing can be written anywhere."""
        second = self._second
        place = self._first if self._trouble is None or second is None else second
        return len({*self._new, *place.lacks})

    def keep(self, result: TrialResult) -> None:
        """A trial that ended. Returns when it is written, or a slow service has been waited for."""
        self._keep([result])

    def keep_soon(self, result: TrialResult, then: Callable[[], None]) -> None:
        """Have a trial that ended written while the caller goes on; before that, `catch_up`.

        Args:
            then: called once the trial is written, or could not be: by `tell_written`, or by the next method that waits
                for the writing.
        """
        self._take([result])  # first: Ctrl-C may come while the trial before it is waited for
        self.catch_up()
        self._write_soon()
        self._then.append(then)

    def when_written(self, news: Callable[[], None]) -> None:
        """Call `news` after what waits for the writing, so that all is told in order: at once where nothing does."""
        self.tell_written()
        if self._then:
            self._then.append(news)
        else:
            news()

    def tell_written(self) -> None:
        """Call what waits for the end of the writing, if that has come. Does not wait."""
        if self._then and self._behind.wait(within_s=0.0):
            self._tell_all()

    def catch_up(self) -> None:
        """Wait until all that was kept is written, or a slow service has been waited for; whoever waits for it is told
        then."""
        left_s = None if self._first.store.is_local else max(0.0, self._waits_until - time.monotonic())
        if not self._behind.wait(within_s=left_s) and not self._was_slow:
            self._was_slow = True
            _logger.warning(
                "Results folder %r is slow. Measuring goes on while records are written; if kvray is killed, those "
                "that were not written yet are lost.",
                self._first.store.display_name,
            )
        self._tell_all()

    def keep_unlaunched(self, records: Sequence[TrialRecord]) -> None:
        """Trials that no process was started for."""
        self._keep([TrialResult(record=record) for record in records])

    def end_attempt(self) -> None:
        """Say that the sweep's last attempt came to its end."""
        self.finish_writing()
        self._manifest = self._manifest.ended(dt.datetime.now(dt.UTC))
        for place in (self._first, self._second):
            if place is not None:
                place.lacks_manifest = True

    def finish_writing(self) -> None:
        """Wait until all that was kept has been written, or could not be."""
        self._behind.wait()
        self._tell_all()

    def settle(self) -> ResultsStore:
        """Call it when the sweep has ended. Returns the store that holds all of it: the given one, or the second place.

        Raises:
            OutputError: it could not be written anywhere; the message names the best that was measured.
        """
        self.finish_writing()
        self._try_again_at = 0.0
        self._first.doubt_everything(self._manifest)
        self._save()
        if self._trouble is None:
            self._leave_second()
            return self._first.store
        if self._second is not None and not self._second.lacks:
            return self._second.store
        raise OutputError(
            f"{self._trouble.message} No other place could be written either: {len(self._first.lacks)} of "
            f"{len(self._held)} records are lost.",
            hint="Make room, then repeat the sweep.",
        )

    def moved(self) -> OutputError:
        """The error to end with when `settle` returned the second place and everything else has been written there."""
        second = self._second.store.display_name if self._second else "memory"
        run_id = self._manifest.run_id
        see = f"kvray rank {shlex.quote(second)} --run {run_id}"
        if self._manifest.is_complete is False:
            what = f"The sweep was broken off; what it had measured is in {second!r}."
            hint = f"See it with {see}; go on with --output {shlex.quote(second)} --resume {run_id}."
        else:
            what = f"The sweep was measured to its end; all of it, with plan and reports, is in {second!r}."
            hint = f"See it with {see}; copy the folder where there is room."
        return OutputError(
            f"{self._trouble.message if self._trouble else 'The results folder fails.'} {what}", hint=hint
        )

    def move(self, trouble: KvrayError) -> ResultsStore:
        """Go on in the second place, because what is written after the records cannot be written to the first, or the
        records not be read there.

        Raises:
            KvrayError: `trouble`, because there is no second place.
        """
        self._stumble(trouble)
        if self._second is None or self._second.lacks:
            raise trouble
        return self._second.store

    def _keep(self, results: Sequence[TrialResult]) -> None:
        self._take(results)
        self._write_soon()
        self.catch_up()

    def _take(self, results: Sequence[TrialResult]) -> None:
        for result in results:
            self._held[result.record.trial_id] = result
            self._new.append(result.record.trial_id)

    def _write_soon(self) -> None:
        self._waits_until = time.monotonic() + _WAIT_S
        self._behind.ask()

    def _tell_all(self) -> None:
        while self._then:
            self._then.popleft()()

    def _save(self) -> None:
        while self._new:
            for place in filter(None, (self._first, self._second)):
                place.lacks.add(self._new[0])
            self._new.popleft()
        if self._trouble is not None and time.monotonic() < self._try_again_at:
            self._stumble(self._trouble)
            return
        begun = time.monotonic()
        try:
            if self._claim is not None:
                self._claim.renew()
            if not self._first.holds(self._manifest):
                _logger.warning(
                    "Results folder %r is gone or was emptied; this sweep is written there anew.",
                    self._first.store.display_name,
                )
                self._first.lacks = set(self._held)
                self._first.lacks_manifest = True
            self._first.write(self._manifest, is_known_to_be_there=True)
        except (OutputError, ResultsError) as error:
            took_s = time.monotonic() - begun
            self._try_again_at = time.monotonic() + _PATIENCE * took_s if took_s >= _QUICK_S else 0.0
            self._stumble(error)
        else:
            self._trouble = None

    def _stumble(self, trouble: KvrayError) -> None:
        is_new, self._trouble = self._trouble is None, trouble
        before = self._second
        self._second = self._rescued()
        if is_new or self._second is not before:
            where = "in memory only" if self._second is None else f"also in {self._second.store.display_name!r}"
            _logger.warning("%s Measuring goes on; what cannot be written is kept %s.", trouble.message, where)

    def _rescued(self) -> Place | None:
        """The place that all of the sweep has been written to, the known one if it still can be."""
        known = [] if self._second is None else [self._second]
        for place in (*known, *self._new_places()):
            with contextlib.suppress(OutputError, ResultsError):
                place.write(self._manifest)
                return place
        return None

    def _new_places(self) -> Sequence[Place]:
        folders = (cache_dir() / _RESCUED, Path(tempfile.gettempdir()) / f"kvray-{_RESCUED}")
        stores = [ResultsStore(folder / self._manifest.run_id) for folder in folders]
        # A sweep may go on in what was an earlier attempt's second place.
        places = [Place(store, self._held) for store in stores if not self._is_first(store)]
        for place in places:
            place.lacks = set(self._held)
        return places

    def _is_first(self, local: ResultsStore) -> bool:
        first, run_id = self._first.store, self.run_id
        return first.is_local and first.paths(run_id).root.resolve() == local.paths(run_id).root.resolve()

    def _leave_second(self) -> None:
        """All lies in the first place after all."""
        if self._second is not None:
            shutil.rmtree(self._second.store.paths(self._manifest.run_id).root, ignore_errors=True)
            self._second = None
            _logger.warning("Everything could be written to %r after all.", self._first.store.display_name)
