"""The measurement process: the boundary at which anything that can go wrong becomes one `TrialEnded`."""

from __future__ import annotations

import contextlib
import os
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from kvray.engines.base import EngineAdapter, OutOfMemoryError, SubstitutedError, UnsupportedError
from kvray.errors import first_line
from kvray.probes.cpu import set_normal_priority
from kvray.probes.gpu import process_memory_mib
from kvray.record import TrialStatus
from kvray.trial.events import Event, TrialEnded
from kvray.trial.orphans import die_with_parent
from kvray.trial.protocol import TrialProtocol
from kvray.trial.quality import QualityError
from kvray.trial.spec import TrialSpec

CONTINUE = "continue"
STOP = "stop"
_STATUS_OF = (
    (OutOfMemoryError, TrialStatus.OOM),
    (MemoryError, TrialStatus.OOM),
    (UnsupportedError, TrialStatus.UNSUPPORTED),
    (SubstitutedError, TrialStatus.SUBSTITUTED),
    (QualityError, TrialStatus.QUALITY),
)


def child_main(connection: Connection, spec: TrialSpec, adapter: EngineAdapter, log: Path) -> None:
    """Measure `spec`, sending events over `connection`; what is printed goes to the file `log`."""
    os.setsid()
    die_with_parent()
    _redirect_output(log)
    set_normal_priority()
    protocol = TrialProtocol(
        spec,
        adapter,
        emit=connection.send,
        may_continue=lambda: connection.recv() == CONTINUE,
        device_memory_mib=lambda: process_memory_mib(os.getpid()),
    )
    # A closed pipe means that the slot is gone: nobody listens any more.
    with contextlib.suppress(EOFError, BrokenPipeError):
        connection.send(_run(protocol))


def _run(protocol: TrialProtocol) -> Event:
    try:
        finished = protocol.run()
    except (EOFError, BrokenPipeError):
        raise
    except Exception as error:  # noqa: BLE001  (the boundary: every failure of a trial becomes its status)
        traceback.print_exc()
        status = next((status for kind, status in _STATUS_OF if isinstance(error, kind)), TrialStatus.ERROR)
        message = first_line(error)
        if status is TrialStatus.ERROR:
            message = f"{type(error).__name__}: {message}"
        return TrialEnded(status=status, phase=protocol.phase, message=message, facts=protocol.facts)
    status = TrialStatus.OK if finished else TrialStatus.STOPPED
    return TrialEnded(status=status, phase=None, message=None, facts=protocol.facts)


def _redirect_output(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
