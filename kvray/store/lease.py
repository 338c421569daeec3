"""`Lease`: one writer of a sweep in an object store, where nothing can be locked.

Each process writes an object of its own, then lists those of others: who sees a live one withdraws. Of two that begin
at the same moment both may withdraw; never do both go on. A lease is renewed by a thread, and ends some time after its
process has: its age is told by the service's clock.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from kvray.errors import OutputError
from kvray.probes.holds import HeldError
from kvray.store.files import ResultsFiles

LASTS_S = 120.0
_logger = logging.getLogger("kvray.store")
_BEAT_S = 20.0


class Lease:
    """`take`, `keep`, `renew` and `release` are for one thread at a time."""

    def __init__(self, files: ResultsFiles, folder: Path, prefix: str, about: Mapping[str, Any]) -> None:
        self._files = files
        self._folder = folder
        self._prefix = prefix
        self._path = folder / f"{prefix}{uuid.uuid4().hex}.lease"
        self._about = json.dumps({**about, **_this_process()}).encode()
        self._beaten_at = 0.0
        self._over = threading.Event()

    def take(self) -> None:
        """Be the one.

        Raises:
            HeldError: another process is.
            OutputError, ResultsError: the service refuses or cannot be reached.
        """
        begun = _now()
        self._files.write(self._path, self._about)
        for path, age_s in self._files.ages_s(self._folder, self._prefix).items():
            if path != self._path and (holder := self._live(path, age_s)) is not None:
                self._files.delete(self._path)
                raise HeldError({**holder, "seen_s": max(age_s, 0.0)})
        self._beaten_at = begun

    def keep(self) -> None:
        """Renew it in the background from now on."""
        threading.Thread(target=self._beat_until_over, name="kvray-lease", daemon=True).start()

    def renew(self) -> None:
        """Take it anew where it has run out, because the service was away or this machine asleep. Raises as `take`."""
        if _now() - self._beaten_at > LASTS_S / 2:
            self.take()

    def release(self) -> None:
        """End it."""
        self._over.set()
        with contextlib.suppress(OutputError):  # it ends by itself
            self._files.delete(self._path)

    def _live(self, path: Path, age_s: float) -> Mapping[str, Any] | None:
        """Who holds the lease at `path`; a lease whose process is gone is removed."""
        try:
            holder = json.loads(self._files.read(path))
        except FileNotFoundError:
            return None
        except ValueError:
            holder = {}
        holder = holder if isinstance(holder, dict) else {}
        if age_s <= LASTS_S and not _is_gone(holder):
            return holder
        _logger.warning(
            "Process %s on %s, which measured this since %s, %s; this process takes over.",
            *(holder.get(name) for name in ("pid", "host", "since")),
            "has ended" if _is_gone(holder) else f"has not been heard of for {age_s:.0f} s",
        )
        self._files.delete(path)
        return None

    def _beat_until_over(self) -> None:
        while not self._over.wait(_BEAT_S):
            begun = _now()
            if begun - self._beaten_at > LASTS_S / 2:
                continue  # another process may have it by now: `renew` looks before anything is written
            with contextlib.suppress(OutputError):
                self._files.write(self._path, self._about)
                self._beaten_at = begun


def _this_process() -> dict[str, Any]:
    return {"machine": _machine(), "born": psutil.Process().create_time()}


def _is_gone(holder: Mapping[str, Any]) -> bool:
    """Whether it was a process of this machine that has ended, which need not be waited for."""
    if not _machine() or holder.get("machine") != _machine():
        return False
    try:
        return bool(psutil.Process(holder["pid"]).create_time() != holder["born"])
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _machine() -> str:
    """Tells one running system, and on it one space of process ids, from all others; empty where nothing tells."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _now() -> float:
    """Seconds, those included in which this machine slept."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None or os.name == "nt" else time.clock_gettime(clock)
