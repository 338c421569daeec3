"""What identifies the very weights of a model: a commit of the hub, or a hash over its files."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from kvray.errors import ModelError
from kvray.models.hashes import file_sha256, files_sha256
from kvray.models.request import ModelRequest
from kvray.models.source import ModelSource, SourceKind, parse_model_id
from kvray.models.weight_files import weight_files


def revision_of(request: ModelRequest, source: ModelSource, folder: Path) -> str:
    """What identifies the weights of `source`, whose files lie in `folder`. A folder's weights are read once.

    A GGUF file counts by itself, whatever `folder` it was converted into.

    Raises:
        ModelError: the folder's index of weights cannot be read.
    """
    if source.kind is SourceKind.HUB:
        return folder.name
    if source.kind is SourceKind.GGUF:
        return f"sha256:{file_sha256(source.local_path)}"
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    if source.kind is SourceKind.FOLDER:
        # Fine-tuned models share their config: only the weights tell them apart.
        names = weight_files(folder, allow_pickle=request.allow_pickle)
        for sha256 in files_sha256(folder / name for name in names):
            digest.update(sha256.encode())
    return f"sha256:{digest.hexdigest()}"


def check_unchanged(request: ModelRequest, folder: Path) -> None:
    """Compare the files of a local model with the revision that `request` names, if it does.

    Raises:
        ModelError: they are others by now.
    """
    source = parse_model_id(request.model_id)
    if request.revision is None or source.kind is SourceKind.HUB:
        return
    if revision_of(request, source, folder) != request.revision:
        raise ModelError(
            f"Model {request.model_id!r} has changed since the sweep began.",
            hint="What was measured before cannot be compared with it: start a new sweep.",
        )


def is_commit(revision: str | None) -> bool:
    """Whether a `ModelInfo.revision` is a commit of the hub, not a file's hash."""
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None
