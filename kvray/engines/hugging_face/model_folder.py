"""The folder that `from_pretrained` reads: the model's own, or the one that a GGUF file is converted into."""

from __future__ import annotations

from pathlib import Path

from kvray.engines.hugging_face.gguf import converted_gguf
from kvray.models.folders import check_complete, config_folder, fetched_folder, weights_folder
from kvray.models.request import ModelRequest
from kvray.models.revision import revision_of
from kvray.models.source import SourceKind, parse_model_id


def config_path(request: ModelRequest) -> Path:
    """The folder with the model's config and tokenizer, fetched if need be; no weights are downloaded.

    A GGUF file is converted here, because its configuration lies inside it.

    Raises:
        ModelError: it cannot be had.
    """
    gguf = _gguf_file(request)
    return config_folder(request) if gguf is None else converted_gguf(gguf)


def weights_path(request: ModelRequest) -> Path:
    """The folder that `from_pretrained` loads from (for `random:`, the folder with the config), fetched if need be.

    Raises:
        ModelError: it cannot be had, or lacks weights that may be loaded.
    """
    gguf = _gguf_file(request)
    if gguf is None:
        return weights_folder(request)
    folder = converted_gguf(gguf)
    check_complete(request, folder)
    return folder


def fetched_path(request: ModelRequest) -> Path:
    """`weights_path` without a word to the hub where everything is here already: for loading, which is timed."""
    return fetched_folder(request) if _gguf_file(request) is None else weights_path(request)


def revision(request: ModelRequest) -> str:
    """What identifies the very weights: a hub's commit, or a hash for which a folder's weights are read once.

    Raises:
        ModelError: they are not there.
    """
    source = parse_model_id(request.model_id)
    folder = config_path(request)
    if source.kind is SourceKind.FOLDER:
        check_complete(request, folder)
    return revision_of(request, source, folder)


def _gguf_file(request: ModelRequest) -> Path | None:
    source = parse_model_id(request.model_id)
    return source.local_path if source.kind is SourceKind.GGUF else None
