"""The measurement process: the boundary at which anything that can go wrong becomes one `TrialEnded`."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import tempfile
import traceback
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from kvray.candidate import DeviceType
from kvray.engines.base import CrashedError, EngineAdapter, OutOfMemoryError, SubstitutedError, UnsupportedError
from kvray.errors import sentence_of
from kvray.probes.cpu import set_normal_priority
from kvray.probes.gpu import process_memory_by_gpu_mib
from kvray.probes.orphans import die_with_parent
from kvray.record import TrialStatus
from kvray.trial.channel import send_event
from kvray.trial.events import Event, TrialEnded
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
    (CrashedError, TrialStatus.CRASHED),
)


def child_main(connection: Connection, spec: TrialSpec, adapter: EngineAdapter, log: Path, scratch: Path) -> None:
    """Measure `spec`, sending events over `connection`; what is printed goes to the file `log`, temporary files into
    the folder `scratch`, which is made here and removed by the slot."""
    os.setsid()
    die_with_parent()
    _redirect_output(log)
    _redirect_temporary_files(scratch)
    set_normal_priority()
    _leave_further_gpus(spec)
    # What was imported stays: to walk it at every collection took a third of a second.
    gc.freeze()
    emit = partial(send_event, connection.fileno())
    protocol = TrialProtocol(
        spec,
        adapter,
        emit=emit,
        may_continue=lambda: connection.recv() == CONTINUE,
        device_memory_mib=process_memory_by_gpu_mib,
    )
    # A closed pipe means that the slot is gone: nobody listens any more.
    with contextlib.suppress(EOFError, BrokenPipeError):
        emit(_run(protocol))


def _run(protocol: TrialProtocol) -> Event:
    try:
        finished = protocol.run()
    except (EOFError, BrokenPipeError):
        raise
    except Exception as error:  # noqa: BLE001  (the boundary: every failure of a trial becomes its status)
        traceback.print_exc()
        status = _status_of(error)
        message = sentence_of(error)
        if status is TrialStatus.ERROR:
            message = f"{type(error).__name__}: {message}"
        return TrialEnded(status=status, phase=protocol.phase, message=message, facts=protocol.facts)
    status = TrialStatus.OK if finished else TrialStatus.STOPPED
    return TrialEnded(status=status, phase=None, message=None, facts=protocol.facts)


def _status_of(error: Exception) -> TrialStatus:
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return TrialStatus.OOM
    return next((status for kind, status in _STATUS_OF if isinstance(error, kind)), TrialStatus.ERROR)


def _leave_further_gpus(spec: TrialSpec) -> None:
    """The slot holds as many GPUs as the largest candidate of a confirming round needs; a smaller one has the first."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if spec.device is DeviceType.CUDA and shown:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(shown.split(",")[: spec.candidate.parallelism])


def _redirect_temporary_files(scratch: Path) -> None:
    """For this process and all that it starts. Without room for a folder of its own it has the system's."""
    with contextlib.suppress(OSError):
        scratch.mkdir(mode=0o700, exist_ok=True)
        os.environ["TMPDIR"] = str(scratch)
        tempfile.tempdir = None  # the fork server may have looked it up already


def _redirect_output(log: Path) -> None:
    """Into `log`, of which the folder may have been taken away by whoever clears temporary files; else into nothing."""
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
