"""The folder of a model in the layout that `save_pretrained` writes, fetched from the hub if need be.

A GGUF file has no such folder, so the engine that was given one must not ask here for it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from kvray.models import hub
from kvray.models.checkpoint import check_weights_are_there, no_config_error
from kvray.models.request import ModelRequest
from kvray.models.source import SourceKind, parse_model_id
from kvray.models.weight_files import absent, pickle_files, safetensors_files, weight_files

SMALL_FILES = ("*.json", "*.model", "*.spm", "*.tiktoken", "*.txt", "*.jinja", "*.py")


def config_folder(request: ModelRequest) -> Path:
    """The folder with the model's config and tokenizer, fetched if need be; no weights are downloaded.

    Raises:
        ModelError: it cannot be had.
    """
    source = parse_model_id(request.model_id)
    if source.kind is not SourceKind.HUB:
        return source.local_path
    folder = hub.snapshot(source.model_id, SMALL_FILES, revision=request.revision, offline=request.offline)
    if not (folder / "config.json").is_file():
        raise no_config_error(
            f"Model {source.model_id!r}",
            _repository_files(request, folder),
            folder=folder,
            repository=source.model_id,
        )
    return folder


def weights_folder(request: ModelRequest) -> Path:
    """The folder with the model's weights (for `random:`, the folder with the config), fetched if need be.

    Raises:
        ModelError: it cannot be had, or lacks weights that may be loaded.
    """
    source = parse_model_id(request.model_id)
    folder = config_folder(request)
    if source.kind is SourceKind.HUB:
        folder = _downloaded_weights(request, folder)
    if source.kind is not SourceKind.RANDOM:
        check_complete(request, folder)
    return folder


def fetched_folder(request: ModelRequest) -> Path:
    """`weights_folder` without a word to the hub where everything is here already: for loading, which is timed."""
    source = parse_model_id(request.model_id)
    if source.kind is SourceKind.HUB:
        folder = hub.cached_snapshot(source.model_id, SMALL_FILES, revision=request.revision)
        if folder is not None and not _missing_weights(request, folder):
            return folder
    return weights_folder(request)


def check_complete(request: ModelRequest, folder: Path) -> None:
    """Refuse a `folder` that lacks a file of weights.

    Raises:
        ModelError
    """
    is_hub = parse_model_id(request.model_id).kind is SourceKind.HUB
    check_weights_are_there(request, folder, names=partial(_repository_files, request) if is_hub else None)


def _downloaded_weights(request: ModelRequest, folder: Path) -> Path:
    """Exactly the files that `from_pretrained` reads, of the very commit of `folder`: many repositories hold their
    weights twice."""
    revision = request.revision or folder.name
    for names in (safetensors_files(folder), *([pickle_files(folder)] if request.allow_pickle else [])):
        if absent(names, folder):
            wanted = (*SMALL_FILES, *names)
            folder = hub.snapshot(request.model_id, wanted, revision=revision, offline=request.offline)
        if not absent(names, folder):
            break
    return folder


def _repository_files(request: ModelRequest, folder: Path) -> list[str]:
    return hub.repository_files(request.model_id, folder, offline=request.offline)


def _missing_weights(request: ModelRequest, folder: Path) -> list[str]:
    return absent(weight_files(folder, allow_pickle=request.allow_pickle), folder)
