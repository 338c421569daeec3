"""`Watch`: one observation after another, each judged, kept and told before the next.

All that it knows lies in the history, so it may be killed at any moment and goes on where it was.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from kvray.analysis.comparison import ComparedMetric
from kvray.check.watch.config import WatchConfig, WhenBusy
from kvray.check.watch.events import EventKind, Sink, WatchEvent, WatchState
from kvray.check.watch.levels import Watched
from kvray.check.watch.states import (
    Judged,
    Standing,
    judge,
    standing_json,
    standings_of,
)
from kvray.check.watch.subject import Measurer, Measuring, Subject, Target, prepare, read_target, unmeasured
from kvray.check.watch.telling import Teller, event_json, events_of
from kvray.errors import (
    AllTrialsFailedError,
    InvalidValueError,
    KvrayError,
    OutputError,
    RegressionError,
    ResultsError,
    sentence_of,
)
from kvray.extras import Extra
from kvray.files.remote import is_uri, without_secrets
from kvray.probes.contention import Look, QuietWait, announced_sweep, busy_text, disturbers
from kvray.probes.holds import HeldError, hold
from kvray.report import formats
from kvray.store.files import reason
from kvray.store.history import Observation, ObservationRole, WatchHistory, observation_json
from kvray.store.paths import PARTIAL
from kvray.store.skipped import SkippedTurn

_MARKER = "told.json"
_LOCK = "watch.lock"
_logger = logging.getLogger("kvray.watch")


class _OtherMachineError(ResultsError):
    """The history is another machine's: it must not get a row of this one."""


class Watch:
    """Observes, judges, keeps and tells.

    Args:
        open_sinks: makes those who are told, given the watch's folder and what gives all observations so far. It is
            called once, when this is the only watch of the folder.
        open_measurer: makes what observes, given the seconds that one phase of a process may take.
        look, clock, elapsed, pause: what keeps the machine busy, Unix time, seconds that no clock change moves, and
            sleep.
    """

    def __init__(
        self,
        config: WatchConfig,
        *,
        open_sinks: Callable[[Path, Callable[[], Sequence[Observation]]], Sequence[Sink]],
        open_measurer: Callable[[Subject, float], contextlib.AbstractContextManager[Measuring]] = Measurer,
        look: Look = disturbers,
        clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._config = config
        self._open_measurer = open_measurer
        self._look = look
        self._clock = clock
        self._elapsed = elapsed
        self._pause = pause
        self._history = WatchHistory(config.folder)
        self._open_sinks = open_sinks
        self._rows: list[Observation] = []
        self._unwritten: list[Observation] = []

    def run(self) -> None:
        """Observe once, or again and again until a signal raises `KeyboardInterrupt`.

        Raises:
            RegressionError: of one observation: a confirmed regression holds after it.
            AllTrialsFailedError: of one observation: no process was measured to its end.
            KvrayError: the plan cannot be watched here, or another watch has the folder.
            OutputError: of one observation: it could not be written.
        """
        Extra.WATCH.require("kvray watch")
        if is_uri(place := self._config.output_dir or self._config.plan):
            raise InvalidValueError(
                f"A watch keeps its history on this machine, not in {without_secrets(place)!r}.",
                hint="Choose a local folder with --output.",
            )
        target = read_target(self._config.plan)
        try:
            subject = prepare(target, self._config.consent)
        except KvrayError as error:
            self._keep_unprepared(target, error)
            raise
        with self._opened(target):
            if self._config.every_s is None:
                self._once(subject)
            else:
                self._again_and_again(subject, self._config.every_s)

    @contextlib.contextmanager
    def _opened(self, target: Target) -> Iterator[None]:
        """The history, and those who are told."""
        if self._config.every_s is None:
            self._history.check_room()
        else:  # what a full disk does not take stays in memory
            self._history.check_writable()
        with self._only_here():
            self._rows = self._history.read(target.watch_id)
            standings_of(self._rows)
            self._history.tidy()
            sinks = self._open_sinks(self._history.root, lambda: tuple(self._rows))
            self._teller = Teller(sinks, self._history.root / _MARKER)
            try:
                self._teller.catch_up(self._rows)
                yield
            finally:
                self._say_unwritten()
                self._teller.close()

    def _keep_unprepared(self, target: Target, error: KvrayError) -> None:
        """Keep and tell that nothing can be measured any more, where something was measured before."""
        if not self._history.folder.is_dir():
            return
        try:
            with self._opened(target):
                self._keep_error(target, error)
        except KvrayError as another:  # the first one is what the user must hear of
            _logger.warning("The watch could not tell of this error: %s", sentence_of(another))

    def _keep_error(self, target: Target, error: KvrayError) -> None:
        """Tell that there is no observation; where the reason is what is watched, the history has that, too."""
        why = sentence_of(error)
        if not self._rows or isinstance(error, OutputError | _OtherMachineError):
            self._tell(target, EventKind.ERROR, why)
            return
        try:
            self._taken(target, unmeasured(target, self._rows[-1], at=_now(self._clock), why=why))
        except OutputError as full:
            self._tell(target, EventKind.ERROR, sentence_of(full))

    @contextlib.contextmanager
    def _only_here(self) -> Iterator[None]:
        path = self._history.root / PARTIAL / _LOCK
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(hold(path, about))
            except HeldError as error:
                holder = error.holder
                who = f"process {holder.get('pid')} on {holder.get('host')}, since {_shown_moment(holder.get('since'))}"
                raise ResultsError(
                    f"{self._history.display_name!r} is watched already, by {who if holder else 'another process'}.",
                    hint="End that watch, or choose another folder with --output.",
                ) from error
            except OSError as error:
                raise OutputError(f"Cannot write {path.as_posix()!r}: {reason(error)}.") from error
            yield

    def _once(self, subject: Subject) -> None:
        try:
            row = self._observe(subject)
        except KvrayError as error:
            self._keep_error(subject, error)
            raise
        if row is not None and not row.processes:
            raise AllTrialsFailedError(f"Nothing was measured to its end: {row.message or 'nobody knows why.'}")
        self._history.tidy()
        if worse := self._worse():
            raise RegressionError(
                f"{subject.shown} has become worse: {', '.join(worse)}.",
                hint=f"The history is in {self._history.display_name!r}.",
            )

    def _again_and_again(self, subject: Subject, every_s: float) -> None:
        due = self._rows[-1].observed_at.timestamp() + every_s if self._rows else self._clock()
        while True:
            while (left_s := due - self._clock()) > 0:
                self._pause(min(left_s, 60.0))
            due = self._clock() + every_s
            try:
                self._observe(subject)
                self._history.tidy()
            except KvrayError as error:  # the next one may succeed: a disk is emptied, a driver comes back
                self._keep_error(subject, error)

    def _observe(self, subject: Subject) -> Observation | None:
        """One observation, and at once the confirming one that it asks for. `None`: it was skipped."""
        at = dt.datetime.fromtimestamp(self._clock(), dt.UTC)
        run_id = f"watch-{at:%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
        with announced_sweep(subject.device.device, run_id) as others:
            load = self._load(subject, others)
            if load is not None and self._config.when_busy is WhenBusy.WAIT:
                self._skip(subject, load)
                return None
            with self._open_measurer(subject, self._config.timeout_s) as measurer:
                row = measurer.observe(ObservationRole.WINNER, self._config.processes, at=at, load=load, run_id=run_id)
                self._check_machine(row)
                row, judged = self._taken(subject, row)
                if any(one.needs_rounds for one in judged):
                    more = measurer.observe(
                        ObservationRole.CONFIRM,
                        self._config.confirming,
                        at=_now(self._clock),
                        load=load,
                        run_id=run_id,
                    )
                    row, _ = self._taken(subject, more)
        return row

    def _skip(self, subject: Subject, load: str) -> None:
        try:
            self._history.append_skipped(SkippedTurn(at=_now(self._clock), reason=load))
        finally:
            self._tell(subject, EventKind.SKIPPED, f"Not measured, because others use the machine: {load}.")

    def _load(self, subject: Subject, others: Sequence[str]) -> str | None:
        """Who uses the machine, after waiting for quiet where that is asked for."""
        config, device = self._config, subject.device.device
        if config.when_busy is WhenBusy.WAIT and others:
            return "; ".join(one.rstrip(".") for one in others)
        if config.when_busy is WhenBusy.MEASURE or not config.wait_quiet_s:
            return "; ".join(filter(None, (*others, busy_text(self._look(device))))) or None
        quiet = QuietWait(
            device,
            config.wait_quiet_s,
            tell=_logger.info,
            otherwise="this turn is skipped",
            look=self._look,
            clock=self._elapsed,
            pause=self._pause,
        )
        quiet.wait()
        return quiet.still_busy

    def _check_machine(self, row: Observation) -> None:
        """Refuse to mix two machines in one history."""
        if self._rows and self._rows[-1].hardware != row.hardware:
            known = self._rows[-1]
            raise _OtherMachineError(
                f"{self._history.display_name!r} was measured on another machine ({known.device_name} of {known.host}; "
                f"this is {row.device_name} of {row.host}).",
                hint="Begin a history of this machine with --output.",
            )

    def _taken(self, target: Target, row: Observation) -> tuple[Observation, tuple[Judged, ...]]:
        """Judge what was measured, keep it, and tell."""
        before = standings_of(self._rows)
        judged = judge([*self._rows, row], before, after_rounds=row.role is ObservationRole.CONFIRM)
        standings = {one.watched: one.standing for one in judged}
        told = events_of(row, judged, [*self._rows, row], target.shown)
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
        self._keep(row)
        return row, judged

    def _keep(self, row: Observation) -> None:
        """Write `row`, with what could not be written before, and tell it then. What still cannot be written stays
        here and is tried again."""
        self._unwritten.append(row)
        self._write()

    def _write(self) -> None:
        while self._unwritten:
            self._history.append(self._unwritten[0])
            self._teller.tell_row(self._unwritten.pop(0))

    def _say_unwritten(self) -> None:
        """Before the watch ends, try once more to write what could not be written; log in full what still cannot."""
        try:
            self._write()
        except OutputError:
            for row in self._unwritten:
                _logger.error("This observation could not be written: %s", observation_json(row))

    def _tell(self, target: Target, kind: EventKind, text: str) -> None:
        at = _now(self._clock)
        self._teller.tell(
            [
                WatchEvent(
                    event_id=f"{at:%Y%m%dT%H%M%S}.{at.microsecond:06}Z-{kind}",
                    kind=kind,
                    at=at,
                    plan=target.shown,
                    watch_id=target.watch_id,
                    text=text,
                )
            ]
        )

    def _worse(self) -> list[str]:
        """Metrics of which a confirmed regression holds; the machine is nobody's configuration."""
        standings: dict[Watched, Standing] = standings_of(self._rows)
        return [
            one.title
            for one, standing in standings.items()
            if one is not None and standing.state is WatchState.CONFIRMED
        ]


def _shown_moment(text: object) -> object:
    """An ISO time as all messages have it; anything else as it is."""
    with contextlib.suppress(ValueError):
        return formats.timestamp(dt.datetime.fromisoformat(str(text)))
    return text


def _now(clock: Callable[[], float]) -> dt.datetime:
    return dt.datetime.fromtimestamp(clock(), dt.UTC)
