"""The GGUF file that llama.cpp loads for a model, found and checked by its header. Imports no library of the engine."""

from __future__ import annotations

from pathlib import Path

from kvray.engines.base import ModelRequest
from kvray.engines.llama_cpp.build import knows_architecture
from kvray.errors import ModelError
from kvray.models.foreign_files import gguf_files, listed
from kvray.models.gguf_header import GgufHeader, check_gguf_file
from kvray.models.source import SourceKind, parse_model_id

_CURE = (
    "Name a GGUF file for this engine with --model-for llama_cpp=FILE.gguf, or make one with llama.cpp's "
    "convert_hf_to_gguf.py."
)


def gguf_path(request: ModelRequest) -> Path:
    """The model's file: the one that is named, or the only one in the folder that is named.

    Raises:
        ModelError: the model is something else.
    """
    if (folder := _folder(request.model_id)) is not None:
        return _only_file(request, folder)
    source = parse_model_id(request.model_id)
    if source.kind is not SourceKind.GGUF:
        raise ModelError(f"llama.cpp runs GGUF files only, and {request.model_id!r} is not one.", hint=_CURE)
    return source.local_path


def _only_file(request: ModelRequest, folder: Path) -> Path:
    try:
        names = gguf_files([path.name for path in folder.iterdir()])
    except OSError as error:
        raise ModelError(f"Folder {request.model_id!r} cannot be read: {error.strerror or error}.") from error
    if not names:
        raise ModelError(
            f"llama.cpp runs GGUF files only, and there is none in folder {request.model_id!r}.", hint=_CURE
        )
    if len(names) > 1:
        raise ModelError(
            f"Folder {request.model_id!r} holds {len(names)} GGUF files: {listed(names)}.",
            hint=f"Give one of them, for example {folder / names[0]}.",
        )
    return folder / names[0]


def read_model(request: ModelRequest) -> GgufHeader:
    """The header of the model's file, checked.

    Raises:
        ModelError: the file is no whole model, cannot be read, or is of an architecture that this llama.cpp lacks.
    """
    path = gguf_path(request)
    try:
        header = check_gguf_file(path)
    except ModelError as error:
        raise ModelError(f"GGUF file {str(path)!r} cannot be loaded: {error.message}", hint=error.hint) from error
    except OSError as error:
        raise ModelError(f"GGUF file {str(path)!r} cannot be read: {error.strerror or error}.") from error
    if knows_architecture(header.architecture) is False:
        raise ModelError(
            f"GGUF file {str(path)!r} cannot be loaded: this llama.cpp does not know the architecture "
            f"{header.architecture!r}.",
            hint="Update llama-cpp-python, or give the original model to an engine that reads it.",
        )
    return header


def _folder(model_id: str) -> Path | None:
    try:
        path = Path(model_id).expanduser()
        return path if path.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        return None
