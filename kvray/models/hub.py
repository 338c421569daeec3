"""The Hugging Face hub: a repository's files on this disk, or one clear error within seconds.

Downloads happen here and nowhere else. `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE` mean what they always do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from kvray.errors import ModelError, sentence_of

ANSWER_TIMEOUT_S = 10.0
"""For the hub's first answer. The hub's client sets no limit of its own there, so a silent hub would hang a sweep."""


def snapshot(repo_id: str, patterns: Iterable[str], *, revision: str | None = None, offline: bool = False) -> Path:
    """The folder with the files of `repo_id` that match `patterns`: downloaded, or as cached where the hub refuses,
    fails or cannot be reached. Its name is the commit.

    Args:
        revision: a commit; `None`: the newest, which is what the hub is asked for.
        offline: whether the hub must not be asked at all.

    Raises:
        ModelError: they are neither on the hub nor cached; says why and what to do.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    wanted = list(patterns)
    if offline:
        return _cached_or_refused(repo_id, wanted, revision)
    try:
        HfApi().model_info(repo_id, revision=revision, timeout=ANSWER_TIMEOUT_S)
    except (HTTPError, OSError, ValueError) as error:
        found = cached_snapshot(repo_id, wanted, revision=revision)
        if found is None:
            raise _explained(repo_id, error) from error
        return found
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=wanted))
    except LocalEntryNotFoundError as error:
        raise _explained(repo_id, error.__cause__ or error) from error
    except (HTTPError, OSError, ValueError) as error:
        raise _explained(repo_id, error) from error


def cached_snapshot(repo_id: str, patterns: Iterable[str], *, revision: str | None = None) -> Path | None:
    """The cached folder of `repo_id`, the hub not being asked; `None`: there is none, or it is known to lack files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def repository_files(repo_id: str, folder: Path, *, offline: bool) -> list[str]:
    """Names of all files of `repo_id` at the commit that `folder` is a snapshot of; what lies there, where the hub must
    not or cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    if not offline:
        with contextlib.suppress(HTTPError, OSError, ValueError):
            info = HfApi().model_info(repo_id, revision=folder.name, timeout=ANSWER_TIMEOUT_S)
            return [one.rfilename for one in info.siblings or ()]
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()]


def tensor_dtypes(repo_id: str, name: str, *, revision: str, offline: bool) -> list[str]:
    """Dtypes of the tensors in a safetensors file on the hub, as that names them, read from its header alone. Empty
    where the hub must not be asked, or has no such file.

    Raises:
        ModelError: the hub fails or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HTTPError,
        OfflineModeIsEnabled,
        SafetensorsParsingError,
    )

    if offline:
        return []
    try:
        header = HfApi().parse_safetensors_file_metadata(repo_id, name, revision=revision)
    except (EntryNotFoundError, OfflineModeIsEnabled, SafetensorsParsingError):
        return []
    except (HTTPError, OSError, ValueError) as error:
        raise _explained(repo_id, error) from error
    return [header.tensors[tensor].dtype for tensor in sorted(header.tensors)]


def _cached_or_refused(repo_id: str, patterns: list[str], revision: str | None) -> Path:
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import validate_repo_id

    found = cached_snapshot(repo_id, patterns, revision=revision)
    if found is not None:
        return found
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise _explained(repo_id, error) from error
    raise _explained(repo_id, OfflineModeIsEnabled())


def _explained(repo_id: str, error: BaseException) -> ModelError:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    absent = f"There is no folder {repo_id!r} here. "
    likely_meant = absent if _may_mean_a_folder(repo_id) else ""
    match error:
        case HFValidationError():
            return ModelError(f"{likely_meant}{repo_id!r} is not a valid hub id.", hint="Use the form org/name.")
        case GatedRepoError():
            return ModelError(
                f"Model {repo_id!r} is gated: the hub wants you to accept its terms first.",
                hint="Accept them on the model's page and log in with `hf auth login`.",
            )
        case RepositoryNotFoundError():
            return ModelError(
                f"{likely_meant}Model {repo_id!r} does not exist on the hub, or is private.",
                hint="Check the spelling, or log in with `hf auth login`.",
            )
        case OfflineModeIsEnabled():
            return ModelError(
                f"{absent}Model {repo_id!r} is not in the local hub cache, and --offline or HF_HUB_OFFLINE forbids "
                "to download it.",
                hint="Unset HF_HUB_OFFLINE and leave --offline out, or give a local folder.",
            )
        case HfHubHTTPError() if error.response.status_code in (401, 403):
            return ModelError(
                f"{likely_meant}The hub refuses model {repo_id!r} ({sentence_of(error)}).",
                hint="Log in with `hf auth login`.",
            )
        case HfHubHTTPError():
            return ModelError(
                f"{absent}Model {repo_id!r} is not in the local hub cache, and the hub fails ({sentence_of(error)}).",
                hint="Try again later, or give a local folder.",
            )
        case ValueError():
            return ModelError(
                f"{absent}Model {repo_id!r} cannot be looked up: what answers is not a hub ({sentence_of(error)}).",
                hint="Check HF_ENDPOINT, and whether a proxy or a login page stands between.",
            )
        case OSError() if not isinstance(error, ConnectionError):
            return ModelError(
                f"Model {repo_id!r} cannot be stored ({sentence_of(error)}).",
                hint="Make room, or set HF_HOME to a folder with more.",
            )
    return ModelError(
        f"{absent}Model {repo_id!r} is not in the local hub cache and the hub cannot be reached "
        f"({sentence_of(error)}).",
        hint="Download it where there is a network, or give a local folder.",
    )


def _may_mean_a_folder(repo_id: str) -> bool:
    """Whether the folder that would hold it is here: `models/llama` where there is a folder `models`."""
    parent, _, _ = repo_id.rpartition("/")
    return bool(parent) and Path(parent).is_dir()
