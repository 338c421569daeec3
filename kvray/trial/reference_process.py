"""Makes a model's reference, once, in a process of its own: the baseline of the engine that is named for it.

Only to be called before a measurement process has computed anything: where the reference is made by the engine that is
measured, the process is forked, and neither CUDA nor OpenMP survives a fork. Otherwise it is a fresh interpreter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from kvray.engines.base import EngineAdapter
from kvray.errors import sentence_of
from kvray.probes.orphans import die_with_parent
from kvray.search_paths import child_environment, python_command
from kvray.trial.quality import Reference, forced_tokens, summarize
from kvray.trial.reference import quality_cell, save_reference
from kvray.trial.spec import ReferenceSpec, TrialSpec

_FETCHED = b"\0"
"""What the process says once the weights are on disk; a reason for failure may follow."""


def ensure_reference(
    spec: TrialSpec, reference: ReferenceSpec, adapter: EngineAdapter, path: Path, *, fetched: Callable[[], None]
) -> str | None:
    """Have `reference` made at `path` if it is not there; returns why that failed, `None` if it is there.

    A failure is remembered for the sweep, so that its other trials do not try the same again.

    Args:
        adapter: the engine that is measured here.
        fetched: called when the weights are on disk and loading begins.
    """
    if path.is_file():
        return None
    failed = path.with_suffix(f".{spec.run_id}.failed")
    with contextlib.suppress(OSError):
        return failed.read_text(encoding="utf-8")
    reason = _make_in_a_process(spec, reference, adapter, path, fetched)
    if reason is not None:
        with contextlib.suppress(OSError):
            failed.parent.mkdir(parents=True, exist_ok=True)
            failed.write_text(reason, encoding="utf-8")
    return reason


def main() -> None:
    """Make the reference that standard input describes, and say how it went into the given descriptor."""
    spec, reference, adapter, path = pickle.load(sys.stdin.buffer)
    _make(spec, reference, adapter, path, int(sys.argv[1]))


def _make_in_a_process(
    spec: TrialSpec, reference: ReferenceSpec, adapter: EngineAdapter, path: Path, fetched: Callable[[], None]
) -> str | None:
    maker = reference.adapter or adapter
    is_loaded_here = type(maker) is type(adapter) and reference.python in (None, python_command()[0])
    is_forked = is_loaded_here and maker.start_method == "forkserver" and hasattr(os, "fork")
    reader, writer = os.pipe()
    try:
        pid = (_forked if is_forked else _started)(spec, reference, maker, path, writer)
    except OSError as error:
        os.close(reader)
        return f"the reference could not be made: {reference.python} cannot be started: {error.strerror}"
    finally:
        os.close(writer)
    try:
        said = os.read(reader, 1)
        if said == _FETCHED:
            fetched()
            said = b""
        # The watchdog would end the whole trial after `timeout_s`.
        said += _read_until(reader, time.monotonic() + 0.8 * spec.timeout_s)
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if path.is_file():
        return None
    return f"the reference could not be made: {said.decode(errors='replace') or 'its process died or took too long'}"


def _forked(spec: TrialSpec, reference: ReferenceSpec, maker: EngineAdapter, path: Path, writer: int) -> int:
    """A fork of this process, which is in the trial's group and must never return into its parent's code."""
    pid = os.fork()
    if pid == 0:
        try:
            _make(spec, reference, maker, path, writer)
        finally:
            os._exit(0)
    return pid


def _started(spec: TrialSpec, reference: ReferenceSpec, maker: EngineAdapter, path: Path, writer: int) -> int:
    """A fresh interpreter in the trial's group, for an engine whose libraries are not loaded here."""
    other = None if reference.python == python_command()[0] else reference.python
    # A user's own engine is found where this process found it; another environment has paths of its own.
    paths = "" if other else f"import sys; sys.path[:] = {sys.path!r}; "
    process = subprocess.Popen(
        python_command("-c", f"{paths}from {__name__} import main; main()", str(writer), python=other),
        env={**maker.process_environment(), **child_environment(python=other)},
        stdin=subprocess.PIPE,
        pass_fds=[writer],
    )
    with contextlib.suppress(BrokenPipeError), process.stdin or contextlib.nullcontext() as given:
        if given is not None:
            given.write(pickle.dumps((spec, reference, maker, path)))
    return process.pid


def _make(spec: TrialSpec, reference: ReferenceSpec, maker: EngineAdapter, path: Path, writer: int) -> None:
    try:
        die_with_parent()
        maker.fetch_weights(reference.requested(spec))
        os.write(writer, _FETCHED)
        save_reference(_measured(spec, reference, maker), path)
    except BaseException as error:  # noqa: BLE001  (the boundary: whatever happened is told to the parent)
        traceback.print_exc()
        os.write(writer, f"{type(error).__name__}: {sentence_of(error)}".encode())


def _measured(spec: TrialSpec, reference: ReferenceSpec, maker: EngineAdapter) -> Reference:
    """Written by the maker's tokenizer once, then fed to it: every candidate is fed the same ids."""
    candidate = dataclasses.replace(reference.candidate, batch_size=1)
    cell = quality_cell(spec)._replace(batch_size=1)
    model = maker.load(reference.requested(spec), candidate, spec.device, spec.profile)
    model.prepare(cell)
    text = model.forced_text(forced_tokens(cell))
    return summarize(model.forced_log_probabilities(text), text)


def _read_until(reader: int, deadline: float) -> bytes:
    """What comes until the other side closes, or the clock reaches `deadline`."""
    said = b""
    while (left := deadline - time.monotonic()) > 0 and select.select([reader], [], [], left)[0]:
        part = os.read(reader, 4096)
        if not part:
            break
        said += part
    return said
