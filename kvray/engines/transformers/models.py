"""Where a model's files are: hub id, local folder, `.gguf` file or `random:<folder or config.json>`.

Resolves a user's words into a folder that `from_pretrained` reads; `hub` downloads, `gguf` converts.
"""

from __future__ import annotations

import enum
import hashlib
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kvray.engines.base import ModelRequest
from kvray.engines.transformers import hub
from kvray.engines.transformers.checkpoint import check_weights_are_there, names_for_config, no_config_error
from kvray.engines.transformers.gguf import converted_gguf
from kvray.engines.transformers.hashes import file_sha256, files_sha256
from kvray.engines.transformers.weight_files import absent, pickle_files, safetensors_files, weight_files
from kvray.errors import ModelError, sentence_of
from kvray.record import RANDOM_PREFIX

SMALL_FILES = ("*.json", "*.model", "*.spm", "*.tiktoken", "*.txt", "*.jinja", "*.py")


class SourceKind(enum.Enum):
    """What a model id points at."""

    HUB = "hub"
    FOLDER = "folder"
    GGUF = "gguf"
    RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A parsed model id. `path` is set for everything but a hub id."""

    kind: SourceKind
    model_id: str
    path: Path | None = None

    @property
    def portable_id(self) -> str:
        """The id with an absolute path: it means the same in a process that runs in another folder."""
        if self.path is None:
            return self.model_id
        return f"{RANDOM_PREFIX if self.kind is SourceKind.RANDOM else ''}{self.path}"

    @property
    def local_path(self) -> Path:
        """The path of a source that has one."""
        if self.path is None:
            raise ModelError(f"Model {self.model_id!r} has no local path.")
        return self.path


def parse_model_id(model_id: str) -> ModelSource:
    """Tell what `model_id` is, by its form and by what exists on disk.

    Raises:
        ModelError: it names a file or folder that is not there or is not a model.
    """
    if model_id.startswith(RANDOM_PREFIX):
        return ModelSource(kind=SourceKind.RANDOM, model_id=model_id, path=_config_folder(model_id))
    path = _as_path(model_id)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"GGUF file {model_id!r} does not exist.")
        return ModelSource(kind=SourceKind.GGUF, model_id=model_id, path=path.resolve())
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise no_config_error(f"Folder {model_id!r}", names_for_config(path), folder=path)
        return ModelSource(kind=SourceKind.FOLDER, model_id=model_id, path=path.resolve())
    if path.is_file() or model_id.startswith((".", "/", "~")) or model_id.count("/") > 1:
        raise ModelError(
            f"Model {model_id!r} is neither a folder nor a .gguf file nor a hub id.",
            hint="Use org/name, a folder with config.json, a .gguf file, or random:<folder or config.json>.",
        )
    return ModelSource(kind=SourceKind.HUB, model_id=model_id)


def _as_path(text: str) -> Path:
    """`text` as a path that can be asked whether it exists.

    Raises:
        ModelError: it cannot be a path here (an unknown user's home, too long, no right to look).
    """
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"Model {text!r} cannot be looked up: {sentence_of(error)}") from error
    return path


def _config_folder(model_id: str) -> Path:
    path = _as_path(model_id.removeprefix(RANDOM_PREFIX))
    folder = path.parent if path.name.endswith(".json") else path
    config = path if path.name.endswith(".json") else path / "config.json"
    if not config.is_file():
        raise ModelError(f"Model {model_id!r}: {str(config)!r} does not exist.", hint="Give a folder or a config.json.")
    if config.name != "config.json":
        raise ModelError(f"Model {model_id!r}: the file must be called config.json, not {config.name!r}.")
    return folder.resolve()


def config_path(request: ModelRequest) -> Path:
    """The folder with the model's config and tokenizer, fetched if need be; no weights are downloaded.

    A GGUF file is converted here, because its configuration lies inside it.

    Raises:
        ModelError: it cannot be had.
    """
    source = parse_model_id(request.model_id)
    if source.kind is SourceKind.HUB:
        folder = hub.snapshot(source.model_id, SMALL_FILES, revision=request.revision, offline=request.offline)
        if not (folder / "config.json").is_file():
            raise no_config_error(
                f"Model {source.model_id!r}",
                _repository_files(request, folder),
                folder=folder,
                repository=source.model_id,
            )
        return folder
    if source.kind is SourceKind.GGUF:
        return converted_gguf(source.local_path)
    return source.local_path


def weights_path(request: ModelRequest) -> Path:
    """The folder that `from_pretrained` loads from (for `random:`, the folder with the config), fetched if need be.

    Raises:
        ModelError: it cannot be had, or lacks weights that may be loaded.
    """
    source = parse_model_id(request.model_id)
    folder = config_path(request)
    if source.kind is SourceKind.HUB:
        folder = _downloaded_weights(request, folder)
    if source.kind is not SourceKind.RANDOM:
        check_complete(request, folder)
    return folder


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


def fetched_path(request: ModelRequest) -> Path:
    """`weights_path` without a word to the hub where everything is here already: for loading, which is timed."""
    source = parse_model_id(request.model_id)
    if source.kind is SourceKind.HUB:
        folder = hub.cached_snapshot(source.model_id, SMALL_FILES, revision=request.revision)
        if folder is not None and not _missing_weights(request, folder):
            return folder
    return weights_path(request)


def is_commit(revision: str | None) -> bool:
    """Whether a `ModelInfo.revision` is a commit of the hub, not a file's hash."""
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def check_complete(request: ModelRequest, folder: Path) -> None:
    """Refuse a `folder` that lacks a file of weights.

    Raises:
        ModelError
    """
    is_hub = parse_model_id(request.model_id).kind is SourceKind.HUB
    check_weights_are_there(request, folder, names=partial(_repository_files, request) if is_hub else None)


def _repository_files(request: ModelRequest, folder: Path) -> list[str]:
    return hub.repository_files(request.model_id, folder, offline=request.offline)


def _missing_weights(request: ModelRequest, folder: Path) -> list[str]:
    return absent(weight_files(folder, allow_pickle=request.allow_pickle), folder)


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


def revision_of(request: ModelRequest, source: ModelSource, folder: Path) -> str:
    """As `revision`, for a source and folder that are known already."""
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
