"""The reference of a model as a file in kvray's cache folder: its name, reading, writing.

There is one per model, made by one named engine (`trial.reference_process`). Candidates of all engines are compared
with it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np

from kvray.config import cache_dir
from kvray.engines.prompts import forced_text, prompt_text
from kvray.errors import sentence_of
from kvray.files.file_systems import write_whole
from kvray.probes.environment import capture_environment
from kvray.trial.quality import IncomparableError, Reference, forced_tokens
from kvray.trial.spec import ReferenceSpec, TrialSpec
from kvray.workload import Cell

FORMAT = 3
"""Version of the file's format and of how the text is fed; part of the hash in its name."""


def quality_cell(spec: TrialSpec) -> Cell:
    """The cell whose length is compared: the longest of rung 0."""
    return max(spec.profile.cells(spec.candidate.batch_size, rung=0))


def reference_path(spec: TrialSpec, reference: ReferenceSpec) -> Path:
    """Where the reference of these weights on this device, with these libraries, lies or is to lie. It is the same for
    all candidates, whatever engine measures them."""
    environment, cell = capture_environment(spec.device), quality_cell(spec)
    key = {
        "format": FORMAT,
        "engine": reference.candidate.engine,
        "model": reference.requested(spec).model_id,
        "revision": reference.model_revision,
        "candidate": reference.candidate.to_dict(),
        "tokens": cell.context_tokens + cell.output_tokens,
        "forced": forced_tokens(cell),
        "text": prompt_text() + forced_text(),
        "device": environment.device_name,
        "libraries": dict(reference.engine_versions),
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
        all(array.dtype.kind == kind for array, kind in zip(vars(reference).values(), "iiiifff", strict=True))
        and tokens.ndim == 1
        and reference.text.ndim == 1
        and len(reference.text) >= len(tokens)
        and bool((reference.text[-len(tokens) :] == tokens).all() and (reference.text >= 0).all())
        and reference.places.shape == tokens.shape
        and bool((np.diff(reference.places) == 1).all())
        and logs.ndim == 2
        and logs.shape == reference.top_ids.shape
        and reference.nll.shape == reference.nll_upper.shape == tokens.shape
        and logs.shape[0] == len(tokens) > 0
        and logs.shape[1] > 0
        and bool((reference.top_ids >= 0).all() and np.isfinite(logs).all())
        and bool(np.isfinite(reference.nll).all() and np.isfinite(reference.nll_upper).all())
    )


def save_reference(reference: Reference, path: Path) -> None:
    """Write it whole or not at all; several processes may do so at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    np.savez(data, **vars(reference))
    write_whole(path, data.getvalue())
