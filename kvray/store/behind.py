"""`WriteBehind`: writes in a thread of its own, so that a slow service holds nobody up for long."""

from __future__ import annotations

import threading
from collections.abc import Callable


class WriteBehind:
    """Calls `write` in the background whenever it was asked for since the last call began, never twice at a time.

    The thread ends when nothing is asked for. It does not keep the process alive.
    """

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write
        self._changed = threading.Condition()
        self._asked = 0
        self._done = 0
        self._runs = False
        self._error: Exception | None = None

    def ask(self, *, within_s: float) -> bool:
        """Have everything written that there is now. Returns whether that was done within so many seconds.

        Raises what `write` has raised since the last call.
        """
        with self._changed:
            self._asked += 1
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._run, name="kvray-write-behind", daemon=True).start()
            return self._is_done(self._asked, within_s)

    def wait(self) -> None:
        """Until all that was asked for is done. Raises as `ask`."""
        with self._changed:
            self._is_done(self._asked, None)

    def _is_done(self, number: int, within_s: float | None) -> bool:
        done = self._changed.wait_for(lambda: self._done >= number, within_s)
        error, self._error = self._error, None
        if error is not None:
            raise error
        return done

    def _run(self) -> None:
        while True:
            with self._changed:
                number = self._asked
                if self._done >= number:
                    self._runs = False
                    return
            error = None
            try:
                self._write()
            except Exception as raised:  # noqa: BLE001  (raised again in the thread that asks)
                error = raised
            with self._changed:
                self._done, self._error = number, error or self._error
                self._changed.notify_all()
