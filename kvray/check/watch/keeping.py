"""The history of a watch while it runs: held by one process, judged and written row by row, and told.

All that a watch knows lies in the history, so it may be killed at any moment and goes on where it was.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from kvray.analysis.comparison import ComparedMetric
from kvray.check.watch.events import EventKind, Sink, WatchEvent, WatchIdentity
from kvray.check.watch.states import Judged, judge, standing_json, standings_of
from kvray.check.watch.subject import Target
from kvray.check.watch.telling import Teller, event_json, events_of
from kvray.errors import OutputError, ResultsError
from kvray.probes.holds import HeldError, hold
from kvray.report import formats
from kvray.store.files import reason
from kvray.store.history import Observation, ObservationRole, WatchHistory, observation_json
from kvray.store.paths import PARTIAL
from kvray.store.skipped import SkippedTurn

OpenSinks = Callable[[Path, Callable[[], Sequence[Observation]], WatchIdentity], Sequence[Sink]]
"""Makes those who are told, given the watch's folder, what gives all observations so far, and which watch it is."""
_MARKER = "told.json"
_LOCK = "watch.lock"
_logger = logging.getLogger("kvray.watch")


@contextlib.contextmanager
def opened_history(history: WatchHistory, target: Target, open_sinks: OpenSinks) -> Iterator[OpenHistory]:
    """The history of `target` for this process alone, with those who are told.

    Raises:
        ResultsError: another process has it, or it is another watch's.
        OutputError: nothing can be written there.
    """
    with _only_here(history):
        rows = history.read(target.watch_id)
        standings_of(rows)
        history.tidy()
        sinks = open_sinks(history.root, lambda: tuple(rows), target.identity)
        teller = Teller(sinks, history.root / _MARKER)
        opened = OpenHistory(history, target, rows, teller)
        try:
            teller.catch_up(rows)
            yield opened
        finally:
            opened.say_unwritten()
            teller.close()


class OpenHistory:
    """What was observed of `target`.

    Args:
        rows: all so far, oldest first; this object adds to it.
    """

    def __init__(self, history: WatchHistory, target: Target, rows: list[Observation], teller: Teller) -> None:
        self._history = history
        self._target = target
        self._rows = rows
        self._teller = teller
        self._unwritten: list[Observation] = []

    @property
    def rows(self) -> Sequence[Observation]:
        """All observations so far, oldest first."""
        return self._rows

    def take(self, row: Observation) -> tuple[Observation, tuple[Judged, ...]]:
        """Judge what was measured, keep it, and tell. Gives the row as it is kept.

        Raises:
            OutputError: it cannot be written now. It is tried again with the next one.
        """
        judged = judge([*self._rows, row], standings_of(self._rows), after_rounds=row.role is ObservationRole.CONFIRM)
        standings = {one.watched: one.standing for one in judged}
        told = events_of(row, judged, [*self._rows, row], self._target.shown)
        row = replace(
            row,
            standing=standing_json(standings),
            events=event_json(told),
            ttft_state=standings[ComparedMetric.TTFT].state.value,
            decode_state=standings[ComparedMetric.DECODE].state.value,
            memory_state=standings[ComparedMetric.MEMORY].state.value,
            machine_state=standings[None].state.value,
        )
        self._rows.append(row)
        self._unwritten.append(row)
        self._write()
        return row, judged

    def skip(self, at: dt.datetime, load: str) -> None:
        """Keep and tell that a turn was skipped, because of `load`."""
        try:
            self._history.append_skipped(SkippedTurn(at=at, reason=load))
        finally:
            self.tell(at, EventKind.SKIPPED, f"Not measured, because others use the machine: {load}.")

    def tell(self, at: dt.datetime, kind: EventKind, text: str) -> None:
        """Tell what is no observation."""
        event = WatchEvent(
            event_id=f"{at:%Y%m%dT%H%M%S}.{at.microsecond:06}Z-{kind}",
            kind=kind,
            at=at,
            plan=self._target.shown,
            watch_id=self._target.watch_id,
            text=text,
        )
        self._teller.tell([event])

    def say_unwritten(self) -> None:
        """Before the watch ends, try once more to write what could not be written; log in full what still cannot."""
        try:
            self._write()
        except OutputError:
            for row in self._unwritten:
                _logger.error("This observation could not be written: %s", observation_json(row))

    def _write(self) -> None:
        """Write what is not written yet, each row before it is told. What cannot be written stays."""
        while self._unwritten:
            self._history.append(self._unwritten[0])
            self._teller.tell_row(self._unwritten.pop(0))


@contextlib.contextmanager
def _only_here(history: WatchHistory) -> Iterator[None]:
    path = history.root / PARTIAL / _LOCK
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold(path, about))
        except HeldError as error:
            holder = error.holder
            who = f"process {holder.get('pid')} on {holder.get('host')}, since {_shown_moment(holder.get('since'))}"
            raise ResultsError(
                f"{history.display_name!r} is watched already, by {who if holder else 'another process'}.",
                hint="End that watch, or choose another folder with --output.",
            ) from error
        except OSError as error:
            raise OutputError(f"Cannot write {path.as_posix()!r}: {reason(error)}.") from error
        yield


def _shown_moment(text: object) -> object:
    """An ISO time as all messages have it; anything else as it is."""
    with contextlib.suppress(ValueError):
        return formats.timestamp(dt.datetime.fromisoformat(str(text)))
    return text
