"""The reference of a model: made once, by the baseline, in a process of its own, and kept in kvray's cache folder.

Only to be called before a measurement process has computed anything: the process that makes the reference is forked
from it, and neither CUDA nor OpenMP survives a fork.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np

from kvray.config import cache_dir
from kvray.engines.base import EngineAdapter
from kvray.engines.prompts import forced_text, prompt_text
from kvray.errors import sentence_of
from kvray.files.file_systems import write_whole
from kvray.probes.environment import capture_environment
from kvray.trial.orphans import die_with_parent
from kvray.trial.quality import IncomparableError, Reference, forced_tokens, summarize
from kvray.trial.spec import ReferenceSpec, TrialSpec
from kvray.workload import Cell

FORMAT = 2
"""Version of the file's format and of how the text is fed; part of the hash in its name."""
_FETCHED = b"\0"
"""What the forked process says once the weights are on disk; a reason for failure may follow."""


def quality_cell(spec: TrialSpec) -> Cell:
    """The cell whose length is compared: the longest of rung 0."""
    return max(spec.profile.cells(spec.candidate.batch_size, rung=0))


def reference_path(spec: TrialSpec, reference: ReferenceSpec) -> Path:
    """Where the reference of these weights on this device, with these libraries, lies or is to lie."""
    environment, cell = capture_environment(spec.device), quality_cell(spec)
    key = {
        "format": FORMAT,
        "engine": spec.candidate.engine,
        "model": spec.request.model_id,
        "revision": reference.model_revision,
        "candidate": reference.candidate.to_dict(),
        "tokens": cell.context_tokens + cell.output_tokens,
        "forced": forced_tokens(cell),
        "text": prompt_text() + forced_text(),
        "device": environment.device_name,
        "torch": environment.torch_version,
        "transformers": environment.transformers_version,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "reference" / f"{digest[:32]}.npz"


def load_reference(path: Path) -> Reference:
    """What `save_reference` wrote.

    Raises:
        IncomparableError: it is not there or cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            reference = Reference(**{field.name: arrays[field.name] for field in dataclasses.fields(Reference)})
    except (
        Exception
    ) as error:  # what lies in a cache may be torn anywhere, and zip, zlib and NumPy each say so in their way
        raise IncomparableError(f"the reference {str(path)!r} cannot be read: {sentence_of(error)}") from error
    if not _is_whole(reference):
        raise IncomparableError(f"the reference {str(path)!r} is damaged: its arrays do not go together")
    return reference


def _is_whole(reference: Reference) -> bool:
    """Whether types and shapes are those that `summarize` makes, and every token's are finite."""
    tokens, logs = reference.tokens, reference.top_logs
    return (
        all(array.dtype.kind == kind for array, kind in zip(vars(reference).values(), "iiiff", strict=True))
        and tokens.ndim == 1
        and reference.places.shape == tokens.shape
        and bool((np.diff(reference.places) == 1).all())
        and logs.ndim == 2
        and logs.shape == reference.top_ids.shape
        and reference.nll.shape == tokens.shape
        and logs.shape[0] == len(tokens) > 0
        and logs.shape[1] > 0
        and bool((reference.top_ids >= 0).all() and np.isfinite(logs).all() and np.isfinite(reference.nll).all())
    )


def save_reference(reference: Reference, path: Path) -> None:
    """Write it whole or not at all; several processes may do so at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    np.savez(data, **vars(reference))
    write_whole(path, data.getvalue())


def ensure_reference(spec: TrialSpec, adapter: EngineAdapter, path: Path, *, fetched: Callable[[], None]) -> str | None:
    """Have the reference at `path` made if it is not there; returns why that failed, `None` if it is there.

    A failure is remembered for the sweep, so that its other trials do not try the same again.

    Args:
        fetched: called when the weights are on disk and loading begins.
    """
    if path.is_file():
        return None
    if adapter.start_method != "forkserver" or not hasattr(os, "fork"):
        return f"engine {adapter.name!r} cannot make a reference"
    failed = path.with_suffix(f".{spec.run_id}.failed")
    with contextlib.suppress(OSError):
        return failed.read_text(encoding="utf-8")
    reason = _make_in_a_process(spec, adapter, path, fetched)
    if reason is not None:
        with contextlib.suppress(OSError):
            failed.parent.mkdir(parents=True, exist_ok=True)
            failed.write_text(reason, encoding="utf-8")
    return reason


def _make_in_a_process(spec: TrialSpec, adapter: EngineAdapter, path: Path, fetched: Callable[[], None]) -> str | None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _make_and_exit(spec, adapter, path, writer)
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
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if path.is_file():
        return None
    return f"the reference could not be made: {said.decode(errors='replace') or 'its process died or took too long'}"


def _make_and_exit(spec: TrialSpec, adapter: EngineAdapter, path: Path, writer: int) -> NoReturn:
    """In the forked process, which is in the trial's group and must never return into its parent's code."""
    try:
        die_with_parent()
        adapter.fetch_weights(spec.request)
        os.write(writer, _FETCHED)
        save_reference(_measure(spec, adapter), path)
    except BaseException as error:  # noqa: BLE001  (the boundary: whatever happened is told to the parent)
        traceback.print_exc()
        os.write(writer, f"{type(error).__name__}: {sentence_of(error)}".encode())
    finally:
        os._exit(0)


def _measure(spec: TrialSpec, adapter: EngineAdapter) -> Reference:
    if spec.reference is None:
        raise RuntimeError("no reference is asked for")
    candidate = dataclasses.replace(spec.reference.candidate, batch_size=1)
    cell = quality_cell(spec)._replace(batch_size=1)
    model = adapter.load(spec.request, candidate, spec.device, spec.profile)
    model.prepare(cell)
    return summarize(model.forced_log_probabilities(forced_tokens(cell)))


def _read_until(reader: int, deadline: float) -> bytes:
    """What comes until the other side closes, or the clock reaches `deadline`."""
    said = b""
    while (left := deadline - time.monotonic()) > 0 and select.select([reader], [], [], left)[0]:
        part = os.read(reader, 4096)
        if not part:
            break
        said += part
    return said
