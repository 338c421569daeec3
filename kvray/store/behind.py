"""`WriteBehind`: writes in a thread of its own, so that a slow service holds nobody up for long."""

from __future__ import annotations

import threading
from collections.abc import Callable

_LINGERS_S = 5.0


class WriteBehind:
    """Calls `write` in the background whenever it was asked for since the last call began, never twice at a time.

    The thread ends when nothing has been asked for in a while. It does not keep the process alive. Where the machine
    gives no further thread, who asks calls `write` itself.
    """

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write
        self._changed = threading.Condition()
        self._asked = 0
        self._done = 0
        self._runs = False
        self._error: BaseException | None = None

    def ask(self, *, within_s: float = 0.0) -> bool:
        """Have everything written that there is now. Returns whether that was done within so many seconds.

        Raises what `write` has raised since the last call.
        """
        with self._changed:
            self._asked += 1
            if not (self._runs or self._started()):
                self._write_asked(self._asked)
            self._changed.notify_all()
            return self._is_done(self._asked, within_s)

    def wait(self, *, within_s: float | None = None) -> bool:
        """Until all that was asked for is done, but no longer than that. Returns whether it is. Raises as `ask`."""
        with self._changed:
            return self._is_done(self._asked, within_s)

    def _is_done(self, number: int, within_s: float | None) -> bool:
        done = self._changed.wait_for(lambda: self._done >= number, within_s)
        error, self._error = self._error, None
        if error is not None:
            raise error
        return done

    def _started(self) -> bool:
        """Start the thread; returns whether that was possible. `_runs` is the thread's own to set: Ctrl-C may come
        between its start and the next line here."""
        try:
            threading.Thread(target=self._run, name="kvray-write-behind", daemon=True).start()
        except RuntimeError:
            return False
        return True

    def _run(self) -> None:
        with self._changed:
            if self._runs:
                return
            self._runs = True
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._asked > self._done, _LINGERS_S):
                    self._runs = False
                    return
                number = self._asked
            self._write_asked(number)

    def _write_asked(self, number: int) -> None:
        error: BaseException | None = None
        try:
            self._write()
        except BaseException as raised:  # noqa: BLE001  (raised again in the thread that asks)
            error = raised
        with self._changed:
            self._done, self._error = number, error or self._error
            self._changed.notify_all()
