"""`Deliveries`: hands alerts to a receiver that may be slow or down, in a thread of its own and in their order.

An alert lies in a file until its receiver has taken it, so the next run of the watch delivers what this one could not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from kvray.check.watch.events import WatchEvent
from kvray.check.watch.sinks.alert import Message, alert_message
from kvray.errors import sentence_of
from kvray.files.file_systems import write_whole
from kvray.report import formats

MOST_WAITING = 100
"""Alerts that are kept for one receiver. When there are more, the oldest are dropped."""
MOST_REFUSALS = 10
"""After so many refusals of one alert it is given up. Attempts at a receiver that is down are not counted."""
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 300.0
PATIENCE_S = 20.0
_VERSION = 1
_logger = logging.getLogger("kvray.watch")


class UndeliveredError(Exception):
    """A receiver has not taken an alert.

    Args:
        message: why, as the end of a sentence.
        is_refusal: the receiver works, and it is this alert that it does not take. The next one is tried at once.
    """

    def __init__(self, message: str, *, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.is_refusal = is_refusal


class Receiver(Protocol):
    """Where alerts go."""

    @property
    def name(self) -> str:
        """What messages call it, without secrets: `webhook https://hooks.example.com/…`."""

    def deliver(self, message: Message) -> None:
        """Hand over one alert, in bounded time.

        Raises:
            UndeliveredError: it was not taken.
        """

    def abandon(self) -> None:
        """End a `deliver` that another thread is in, as far as that can be done."""


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    message: Message
    refusals: int = 0


class Deliveries:
    """The sink of one receiver, which gets alerts and nothing else. No method raises or waits for the receiver, except
    `close`, in bounded time.

    Args:
        file: keeps what waits; only this object may write it. It is read, and its alerts are tried, from `start` on.
        pause_s: between the first attempt at a receiver that is down and the second; it doubles with each further one.
        patience_s: how long `close` waits for what is not delivered yet.
    """

    def __init__(
        self, receiver: Receiver, file: Path, *, pause_s: float = FIRST_PAUSE_S, patience_s: float = PATIENCE_S
    ) -> None:
        self._receiver, self._file = receiver, file
        self._first_pause_s, self._patience_s = pause_s, patience_s
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()
        self._is_stopped = False
        self._told = ""
        self._cannot_write = False
        self._thread = threading.Thread(target=self._work, name=f"kvray {receiver.name}", daemon=True)

    def start(self) -> None:
        """Read what earlier runs have left, and begin to deliver. To be called before anything else."""
        self._waiting = self._left_behind()
        if self._waiting:
            _logger.info("%s from earlier for the %s.", _waits(len(self._waiting)), self._receiver.name)
        self._thread.start()

    def tell(self, event: WatchEvent) -> None:
        """Keep an alert, and have it delivered soon. One that waits already, because it is told again after a kill, is
        not kept twice."""
        if event.is_alert:
            self.add(alert_message(event))

    def close(self) -> None:
        """Wait until all is delivered, for a bounded time, and stop. Says what is left for the next run."""
        self.finish(self._patience_s)

    def add(self, message: Message) -> None:
        """Keep a message, unless one with its `event_id` waits."""
        with self._changed:
            if message["event_id"] in [one.message.get("event_id") for one in self._waiting]:
                return
            self._waiting.append(_Waiting(message=message))
            while len(self._waiting) > MOST_WAITING:
                self._drop(0, f"more than {MOST_WAITING} wait, and it is the oldest")
            self._save()
            self._changed.notify_all()

    def finish(self, wait_s: float) -> None:
        """As `close`, with a patience of `wait_s`."""
        with self._changed:
            if self._waiting and wait_s >= 1:
                waits = _waits(len(self._waiting), self._receiver.name)
                _logger.info("%s, which gets %s more.", waits, formats.duration(wait_s))
            self._changed.wait_for(lambda: not self._waiting, timeout=wait_s)
            self._is_stopped = True
            left = len(self._waiting)
            self._changed.notify_all()
        if left:
            self._receiver.abandon()
            self._thread.join(timeout=1.0)
            _logger.warning("%s in %s. The next run tries again.", _waits(left, self._receiver.name), self._file)

    @property
    def number_waiting(self) -> int:
        """Alerts that the receiver has not taken yet."""
        with self._changed:
            return len(self._waiting)

    def _work(self) -> None:
        pause_s = self._first_pause_s
        while self._wait_for_work():
            reason = self._try_all()
            if reason is None:
                pause_s = self._first_pause_s
                continue
            self._tell(reason)
            with self._changed:
                self._changed.wait_for(lambda: self._is_stopped, timeout=pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _wait_for_work(self) -> bool:
        """Whether there is something to deliver, and not the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or bool(self._waiting))
            return not self._is_stopped

    def _try_all(self) -> str | None:
        """Try each alert once, oldest first, up to the first that finds the receiver down. Returns what went wrong."""
        reason = None
        for one in self._snapshot():
            try:
                self._receiver.deliver(one.message)
            except UndeliveredError as error:
                reason = str(error)
                if not error.is_refusal:
                    return reason
                self._count_refusal(one, reason)
            else:
                self._settle(one)
            if self._is_stopped:
                break
        return reason

    def _snapshot(self) -> tuple[_Waiting, ...]:
        with self._changed:
            return tuple(self._waiting)

    def _settle(self, one: _Waiting) -> None:
        """`one` is delivered; it may have been dropped meanwhile, to make room."""
        with self._changed:
            if one in self._waiting:
                self._waiting.remove(one)
                self._save()
            if self._told:
                _logger.info("The %s takes alerts again.", self._receiver.name)
                self._told = ""
            self._changed.notify_all()

    def _count_refusal(self, one: _Waiting, reason: str) -> None:
        with self._changed:
            if one not in self._waiting:
                return
            place = self._waiting.index(one)
            self._waiting[place] = replace(one, refusals=one.refusals + 1)
            if one.refusals + 1 >= MOST_REFUSALS:
                self._drop(place, f"it was refused {MOST_REFUSALS} times: {reason}")
            self._save()
            self._changed.notify_all()

    def _drop(self, place: int, why: str) -> None:
        lost = self._waiting.pop(place)
        _logger.warning(
            "The %s never gets the alert %r: %s.", self._receiver.name, str(lost.message.get("text", "")), why
        )

    def _tell(self, reason: str) -> None:
        """Say what is wrong once, not with every attempt."""
        with self._changed:
            if reason != self._told and self._waiting:
                waits = _waits(len(self._waiting), "it")
                _logger.warning("The %s takes no alert: %s. %s.", self._receiver.name, reason, waits)
            self._told = reason

    def _save(self) -> None:
        """Write down what waits. On a full disk it stays in memory, which is said once."""
        content = {
            "waiting_version": _VERSION,
            "waiting": [{"message": dict(one.message), "refusals": one.refusals} for one in self._waiting],
        }
        try:
            if self._waiting:
                write_whole(self._file, json.dumps(content, indent=1).encode())
            else:
                self._file.unlink(missing_ok=True)
        except OSError as error:
            if not self._cannot_write:
                _logger.warning(
                    "Cannot write %s: %s. Alerts that wait for the %s are in memory only and end with this process.",
                    *(self._file, error.strerror or error, self._receiver.name),
                )
            self._cannot_write = True
        else:
            self._cannot_write = False

    def _left_behind(self) -> list[_Waiting]:
        try:
            return _parsed(self._file.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            aside = self._file.with_name(f"{self._file.name}.unreadable-{int(time.time())}")
            with contextlib.suppress(OSError):
                self._file.rename(aside)
            _logger.warning(
                "%s cannot be used (%s). It is now %s; the alerts in it are not delivered.",
                *(self._file, sentence_of(error), aside.name),
            )
            return []


def _parsed(data: bytes) -> list[_Waiting]:
    content = json.loads(data)
    if content["waiting_version"] != _VERSION:
        raise ValueError(f"its waiting_version is {content['waiting_version']!r}, this kvray knows {_VERSION}")
    found = [_Waiting(message=dict(one["message"]), refusals=int(one["refusals"])) for one in content["waiting"]]
    return found[-MOST_WAITING:]


def _waits(number: int, receiver: str = "") -> str:
    verb = "waits" if number == 1 else "wait"
    return f"{formats.plural(number, 'alert')} {verb}{f' for the {receiver}' if receiver and receiver != 'it' else ''}"
