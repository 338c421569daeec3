"""`Watch`: turn after turn, an observation or none because others use the machine, each kept before the next."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence

from kvray.check.watch.config import WatchConfig, WhenBusy
from kvray.check.watch.events import EventKind, WatchState
from kvray.check.watch.keeping import OpenHistory, OpenSinks, opened_history
from kvray.check.watch.states import standings_of
from kvray.check.watch.subject import Measurer, Measuring, Subject, Target, prepare, read_target, unmeasured
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
from kvray.store.history import Observation, ObservationRole, WatchHistory

_logger = logging.getLogger("kvray.watch")


class _OtherMachineError(ResultsError):
    """The history is another machine's: it must not get a row of this one."""


class Watch:
    """Takes turns of one configuration.

    Args:
        open_sinks: is called once, when this is the only watch of the folder.
        open_measurer: makes what observes, given the seconds that one phase of a process may take.
        look, clock, elapsed, pause: what keeps the machine busy, Unix time, seconds that no clock change moves, and
            sleep.
    """

    def __init__(
        self,
        config: WatchConfig,
        *,
        open_sinks: OpenSinks,
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
        with self._opened(subject) as kept:
            if self._config.every_s is None:
                self._once(subject, kept)
            else:
                self._again_and_again(subject, kept, self._config.every_s)

    @contextlib.contextmanager
    def _opened(self, target: Target) -> Iterator[OpenHistory]:
        if self._config.every_s is None:
            self._history.check_room()
        else:  # what a full disk does not take stays in memory
            self._history.check_writable()
        with opened_history(self._history, target, self._open_sinks) as kept:
            yield kept

    def _keep_unprepared(self, target: Target, error: KvrayError) -> None:
        """Keep and tell that nothing can be measured any more, where something was measured before."""
        if not self._history.folder.is_dir():
            return
        try:
            with self._opened(target) as kept:
                self._keep_error(target, kept, error)
        except KvrayError as another:  # the first one is what the user must hear of
            _logger.warning("The watch could not tell of this error: %s", sentence_of(another))

    def _keep_error(self, target: Target, kept: OpenHistory, error: KvrayError) -> None:
        """Tell that there is no observation; where the reason is what is watched, the history has that, too."""
        why = sentence_of(error)
        if not kept.rows or isinstance(error, OutputError | _OtherMachineError):
            kept.tell(self._now(), EventKind.ERROR, why)
            return
        try:
            kept.take(unmeasured(target, kept.rows[-1], at=self._now(), why=why))
        except OutputError as full:
            kept.tell(self._now(), EventKind.ERROR, sentence_of(full))

    def _once(self, subject: Subject, kept: OpenHistory) -> None:
        try:
            row = self._observe(subject, kept)
        except KvrayError as error:
            self._keep_error(subject, kept, error)
            raise
        if row is not None and not row.processes:
            raise AllTrialsFailedError(f"Nothing was measured to its end: {row.message or 'nobody knows why.'}")
        self._history.tidy()
        if worse := _worse(kept.rows):
            raise RegressionError(
                f"{subject.shown} has become worse: {', '.join(worse)}.",
                hint=f"The history is in {self._history.display_name!r}.",
            )

    def _again_and_again(self, subject: Subject, kept: OpenHistory, every_s: float) -> None:
        due = kept.rows[-1].observed_at.timestamp() + every_s if kept.rows else self._clock()
        while True:
            while (left_s := due - self._clock()) > 0:
                self._pause(min(left_s, 60.0))
            due = self._clock() + every_s
            try:
                self._observe(subject, kept)
                self._history.tidy()
            except KvrayError as error:  # the next one may succeed: a disk is emptied, a driver comes back
                self._keep_error(subject, kept, error)

    def _observe(self, subject: Subject, kept: OpenHistory) -> Observation | None:
        """One observation, and at once the confirming one that it asks for. `None`: it was skipped."""
        at = self._now()
        run_id = f"watch-{at:%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
        with announced_sweep(subject.device.device, run_id) as others:
            load = self._load(subject, others)
            if load is not None and self._config.when_busy is WhenBusy.WAIT:
                kept.skip(self._now(), load)
                return None
            with self._open_measurer(subject, self._config.timeout_s) as measurer:
                row = measurer.observe(ObservationRole.WINNER, self._config.processes, at=at, load=load, run_id=run_id)
                self._check_machine(kept.rows, row)
                row, judged = kept.take(row)
                if any(one.needs_rounds for one in judged):
                    more = measurer.observe(
                        ObservationRole.CONFIRM, self._config.confirming, at=self._now(), load=load, run_id=run_id
                    )
                    row, _ = kept.take(more)
        return row

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

    def _check_machine(self, rows: Sequence[Observation], row: Observation) -> None:
        """Refuse to mix two machines in one history."""
        if rows and rows[-1].hardware != row.hardware:
            known = rows[-1]
            raise _OtherMachineError(
                f"{self._history.display_name!r} was measured on another machine ({known.device_name} of {known.host}; "
                f"this is {row.device_name} of {row.host}).",
                hint="Begin a history of this machine with --output.",
            )

    def _now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self._clock(), dt.UTC)


def _worse(rows: Sequence[Observation]) -> list[str]:
    """Metrics of which a confirmed regression holds; the machine is nobody's configuration."""
    return [
        one.title
        for one, standing in standings_of(rows).items()
        if one is not None and standing.state is WatchState.CONFIRMED
    ]
