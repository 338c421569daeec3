"""One sweep has one writer: the claim of the process that measures, which ends when that process does, however.

By a lock of the file system, or in an object store by a lease that is renewed. Some file systems have no locks: nothing
keeps two processes from resuming one sweep there. Each trial's file is still written whole, and the later one stays.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kvray.errors import OutputError, ResultsError
from kvray.probes.holds import HeldError, Hold, hold
from kvray.store.files import reason, way_out
from kvray.store.lease import LASTS_S, Lease
from kvray.store.parquet import ResultsStore

_logger = logging.getLogger("kvray.store")


class Claim:
    """A claim that this process writes a sweep. Made by `claimed_sweep`."""

    def __init__(self, hold: Hold | Lease, path: Path, what: str) -> None:
        self._hold = hold
        self._path = path
        self._what = what

    def renew(self) -> None:
        """Claim the sweep anew where the folder has vanished, or been replaced, with the file that is the claim. To be
        called before anything is written there: a sweep whose manifest lies there can be resumed by others.

        Raises:
            ResultsError: another process has claimed it since; the message says which.
            OutputError: the claim cannot be written.
        """
        with _claiming(self._path, self._what):
            self._hold.renew()


@contextmanager
def claimed_sweep(store: ResultsStore, run_id: str, *, kind: str = "sweep") -> Iterator[Claim]:
    """Be the only process that writes `run_id` into `store`. `kind` is what the message calls it: a sweep or a batch.

    Raises:
        ResultsError: another process is; the message says which.
        OutputError: the claim cannot be written.
    """
    path, what = store.paths(run_id).lock, f"{kind} {run_id!r}"
    now = dt.datetime.now(dt.UTC)
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": now.isoformat(timespec="seconds")}
    with ExitStack() as stack:
        with _claiming(path, what):
            held: Hold | Lease
            if store.is_local:
                held = stack.enter_context(hold(path, about))
            else:
                held = stack.enter_context(_leased(store, run_id, about))
        if isinstance(held, Hold) and not held.keeps_others_out:
            _logger.warning(
                "Results folder %r: its file system has no locks: nothing keeps another kvray from resuming this %s "
                "meanwhile.",
                store.display_name,
                kind,
            )
        yield Claim(held, path, what)


@contextmanager
def _leased(store: ResultsStore, run_id: str, about: Mapping[str, Any]) -> Iterator[Lease]:
    folder, prefix = store.paths(run_id).leases
    lease = Lease(store.files, folder, prefix, about)
    try:
        lease.take()
        lease.keep()
        yield lease
    finally:
        lease.release()


@contextmanager
def _claiming(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except HeldError as error:
        raise _claimed_by(what, error.holder) from error
    except OSError as error:
        raise OutputError(f"Cannot write {path.as_posix()!r}: {reason(error)}.", hint=way_out(error)) from error


def _claimed_by(what: str, holder: Mapping[str, Any]) -> ResultsError:
    known = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
    who = known if holder else "another process"
    return ResultsError(
        f"{what[0].upper()}{what[1:]} is being measured already, by {who}.",
        hint=f"Wait until that has ended, or start a new {what.split()[0]} without --resume.{_until(holder)}",
    )


def _until(holder: Mapping[str, Any]) -> str:
    """When the lease of a process that was killed ends."""
    if "seen_s" not in holder:
        return ""
    rest_s = max(1, round(LASTS_S - holder["seen_s"]))
    return f" If that process was killed, its claim ends in {rest_s} s."
