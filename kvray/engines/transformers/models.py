"""Where a model's files are: hub id, local folder, `.gguf` file or `random:<folder or config.json>`.

Resolves a user's words into a folder that `from_pretrained` reads. Downloads happen here and nowhere else.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvray.candidate import DType
from kvray.engines.base import ModelInfo, ModelRequest
from kvray.engines.transformers.gguf import converted_gguf, file_sha256
from kvray.errors import ModelError, first_line

RANDOM_PREFIX = "random:"
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.py")


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
    path = Path(model_id).expanduser()
    if model_id.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"GGUF file {model_id!r} does not exist.")
        return ModelSource(kind=SourceKind.GGUF, model_id=model_id, path=path.resolve())
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"Folder {model_id!r} has no config.json, so it is not a Transformers model.")
        return ModelSource(kind=SourceKind.FOLDER, model_id=model_id, path=path.resolve())
    if path.is_file() or model_id.startswith((".", "/", "~")) or model_id.count("/") > 1:
        raise ModelError(
            f"Model {model_id!r} is neither a folder nor a .gguf file nor a hub id.",
            hint="Use org/name, a folder with config.json, a .gguf file, or random:<folder or config.json>.",
        )
    return ModelSource(kind=SourceKind.HUB, model_id=model_id)


def _config_folder(model_id: str) -> Path:
    path = Path(model_id.removeprefix(RANDOM_PREFIX)).expanduser()
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
        return _download(source.model_id, SMALL_FILES)
    if source.kind is SourceKind.GGUF:
        return converted_gguf(source.local_path)
    return source.local_path


def weights_path(request: ModelRequest) -> Path:
    """The folder that `from_pretrained` loads from (for `random:`, the folder with the config).

    Raises:
        ModelError: it cannot be had, or holds only pickled weights.
    """
    source = parse_model_id(request.model_id)
    if source.kind is SourceKind.HUB:
        folder = _download(source.model_id, (*SMALL_FILES, *WEIGHT_FILES))
    else:
        folder = config_path(request)
    if source.kind is not SourceKind.RANDOM and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"Model {request.model_id!r} has no .safetensors weights; kvray loads no pickled ones.",
            hint="Save it with save_pretrained, which writes safetensors.",
        )
    return folder


def describe(request: ModelRequest) -> ModelInfo:
    """What the model's config says.

    Raises:
        ModelError: the config is missing or cannot be read.
    """
    source = parse_model_id(request.model_id)
    folder = config_path(request)
    config = _read_config(request, folder)
    text_config = config.get_text_config(decoder=True)
    architectures = getattr(config, "architectures", None) or [config.model_type]
    return ModelInfo(
        model_id=source.portable_id,
        revision=_revision(source, folder),
        architecture=str(architectures[0]),
        max_context=getattr(text_config, "max_position_embeddings", None),
        native_dtype=_native_dtype(config),
        random_weights=source.kind is SourceKind.RANDOM,
    )


def _read_config(request: ModelRequest, folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=request.trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"Model {request.model_id!r} brings its own Python code.",
                hint="If you trust its author, pass --trust-remote-code.",
            ) from error
        raise ModelError(f"The config of model {request.model_id!r} cannot be read: {first_line(error)}") from error


def _native_dtype(config: Any) -> DType:
    """The checkpoint's dtype; float32 where it names none, which is what `from_pretrained` then loads."""
    named = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return DType(named) if named in set(DType) else DType.FLOAT32


def _revision(source: ModelSource, folder: Path) -> str:
    if source.kind is SourceKind.HUB:
        return folder.name
    if source.kind is SourceKind.GGUF:
        return f"sha256:{file_sha256(source.local_path)}"
    return f"sha256:{hashlib.sha256((folder / 'config.json').read_bytes()).hexdigest()}"


def _download(repo_id: str, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(repo_id, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise ModelError(f"{repo_id!r} is not a valid hub id.", hint="Use the form org/name.") from error
    except GatedRepoError as error:
        raise ModelError(
            f"Model {repo_id!r} is gated: the hub wants you to accept its terms first.",
            hint="Accept them on the model's page and log in with `hf auth login`.",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"Model {repo_id!r} does not exist on the hub, or is private.",
            hint="Check the spelling, or log in with `hf auth login`.",
        ) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise ModelError(
            f"Model {repo_id!r} is not in the local hub cache and the hub cannot be reached (offline?).",
            hint="Download it where there is a network, or give a local folder.",
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"Model {repo_id!r} cannot be downloaded: {first_line(error)}") from error
