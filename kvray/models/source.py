"""Where a model's files are: hub id, local folder, `.gguf` file or `random:<folder or config.json>`."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from kvray.errors import ModelError, sentence_of
from kvray.models.checkpoint import names_for_config, no_config_error
from kvray.record import RANDOM_PREFIX


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


def is_absent_path(model_id: str) -> bool:
    """Whether `model_id` can only be a path, and nothing is there."""
    text = model_id.removeprefix(RANDOM_PREFIX)
    try:
        return _is_path(model_id) and not Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # no such user, too long, no right to look
        return True


def absolute_id(model_id: str) -> str:
    """`model_id` with an absolute path in place of a relative one, or of one below `~`, whether or not it is there."""
    prefix = RANDOM_PREFIX if model_id.startswith(RANDOM_PREFIX) else ""
    text = model_id.removeprefix(prefix)
    is_path = _is_path(model_id)
    try:
        path = Path(text).expanduser()
        is_path = is_path or path.exists()
    except (OSError, RuntimeError, ValueError):  # no such user, too long, no right to look
        return model_id
    return f"{prefix}{path.absolute()}" if is_path else model_id


def _is_path(model_id: str) -> bool:
    """Whether `model_id` has a form that no hub id has."""
    return model_id.startswith((RANDOM_PREFIX, ".", "/", "~")) or model_id.lower().endswith(".gguf")


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
