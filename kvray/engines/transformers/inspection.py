"""The one look at a model before the first trial: what would end every trial alike, found once and named with its cure.

`inspect_files` takes no time and imports no torch; `inspect_weights` asks the library, still without reading a weight.
"""

from __future__ import annotations

from pathlib import Path

from kvray.engines.base import ModelRequest
from kvray.engines.hugging_face.gguf import check_gguf
from kvray.engines.hugging_face.packing import packing_of
from kvray.engines.transformers import description
from kvray.engines.transformers.model_class import model_class
from kvray.engines.transformers.tensors import check_tensors
from kvray.models import hub
from kvray.models.checkpoint import check_files
from kvray.models.folders import SMALL_FILES
from kvray.models.source import SourceKind, parse_model_id
from kvray.models.weight_files import absent, safetensors_files, weight_files


def inspect_files(request: ModelRequest) -> None:
    """Refuse a local model for what its files show by themselves.

    Raises:
        ModelError
    """
    source = parse_model_id(request.model_id)
    if source.kind is SourceKind.FOLDER:
        check_files(request, source.local_path)
    elif source.kind is SourceKind.GGUF:
        check_gguf(source.local_path)


def inspect_weights(request: ModelRequest, *, quick: bool = False) -> None:
    """Refuse a model whose weights are here and do not make the model that its config describes.

    Args:
        quick: leave out what takes more than about a second.

    Raises:
        ModelError
    """
    folder = _weights_folder(request)
    if folder is None:
        return
    check_files(request, folder)
    config = description.read_config(request, folder)
    found = model_class(config, folder, trust_remote_code=request.trust_remote_code)
    # What unpacks packed weights may look at the GPU, and need not work on shapes alone.
    is_plain = packing_of(config) is None
    if found is not None and is_plain and not absent(safetensors_files(folder), folder):
        check_tensors(folder, config, found, quick=quick)


def _weights_folder(request: ModelRequest) -> Path | None:
    """Where the weights lie; `None` where there are none to look at: random, converted here, or not downloaded yet."""
    source = parse_model_id(request.model_id)
    if source.kind is SourceKind.FOLDER:
        return source.local_path
    if source.kind is not SourceKind.HUB:
        return None
    folder = hub.cached_snapshot(source.model_id, SMALL_FILES, revision=request.revision)
    if folder is None or absent(weight_files(folder, allow_pickle=request.allow_pickle), folder):
        return None
    return folder
