"""One sweep has one writer: the claim of the process that measures, which ends when that process does, however.

In an object store there are no locks: nothing keeps two processes from resuming one sweep there. Each trial's file is
still written whole, and the later one of two stays.
"""

from __future__ import annotations

import datetime as dt
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from kvray.errors import OutputError, ResultsError
from kvray.probes.holds import HeldError, hold
from kvray.store.files import reason
from kvray.store.parquet import ResultsStore


@contextmanager
def claimed_sweep(store: ResultsStore, run_id: str) -> Iterator[None]:
    """Be the only process that writes `run_id` into `store`, as long as it is local.

    Raises:
        ResultsError: another process is; the message says which.
        OutputError: the claim cannot be written.
    """
    with ExitStack() as stack:
        if store.is_local:
            path = store.paths(run_id).lock
            now = dt.datetime.now(dt.UTC)
            about = {"pid": os.getpid(), "host": socket.gethostname(), "since": now.isoformat(timespec="seconds")}
            try:
                stack.enter_context(hold(path, about))
            except HeldError as error:
                raise _claimed_by(run_id, error.holder) from error
            except OSError as error:
                raise OutputError(f"Cannot write {path.as_posix()!r}: {reason(error)}.") from error
        yield


def _claimed_by(run_id: str, holder: Mapping[str, Any]) -> ResultsError:
    known = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
    who = known if holder else "another process"
    return ResultsError(
        f"Sweep {run_id!r} is being measured already, by {who}.",
        hint="Wait until that has ended, or start a sweep of its own without --resume.",
    )
