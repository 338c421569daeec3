"""A checkpoint's files by themselves: what `from_pretrained` would stumble on, named with its cure.

Names and headers are read, never weights, so it takes as long for 70B parameters as for a thousand. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kvray.errors import ModelError
from kvray.models.foreign_files import Finding, foreign, gguf_files, listed, matching
from kvray.models.headers import header_fault
from kvray.models.request import ModelRequest
from kvray.models.weight_files import (
    WEIGHTS,
    WEIGHTS_INDEX,
    absent,
    pickle_files,
    weight_files,
)

_TOKENIZER_FILES = ("*.model", "*.tiktoken", "tekken.json", "vocab*", "merges*")
_POINTER = b"version https://git-lfs.github.com/spec/"
_MOST_POINTER_BYTES = 1024
_MOST_NAMES = 10_000
_SHARDS = re.compile(r".+-\d{5}-of-(\d{5})\.(?:safetensors|bin)")


def check_files(request: ModelRequest, folder: Path) -> None:
    """Refuse the checkpoint in `folder` for whatever its files show by themselves.

    Raises:
        ModelError: they are pointers, incomplete, cut off, or of another kind.
    """
    check_no_pointers(request, folder)
    check_weights_are_there(request, folder)
    for name in weight_files(folder, allow_pickle=request.allow_pickle):
        if (fault := header_fault(folder / name)) is not None:
            raise ModelError(
                f"Weights {str(folder / name)!r} cannot be loaded: the file {fault}.",
                hint="Download or copy it again.",
            )


def check_no_pointers(request: ModelRequest, folder: Path) -> None:
    """Refuse what `git clone` leaves where git-lfs is not installed, where `from_pretrained` would read it.

    Raises:
        ModelError: a file of the model is a pointer.
    """
    read_first = ("config.json", *(() if (folder / WEIGHTS).is_file() else (WEIGHTS_INDEX,)))
    pointers = [name for name in read_first if is_pointer(folder / name)]
    if not pointers:
        wanted = (*weight_files(folder, allow_pickle=request.allow_pickle), *_tokenizer_files(folder))
        pointers = [name for name in wanted if is_pointer(folder / name)]
    if pointers:
        are = "is a git-lfs pointer" if len(pointers) == 1 else "are git-lfs pointers"
        raise ModelError(
            f"In {str(folder)!r} {listed(pointers)} {are}, not what it stands for.",
            hint="Run `git lfs install` and `git lfs pull` there, or download the files with `hf download`.",
        )


def _tokenizer_files(folder: Path) -> list[str]:
    """Those without which there is no tokenizer: where there is a tokenizer.json, Transformers reads no other."""
    whole = "tokenizer.json"
    if (folder / whole).is_file():
        return [whole]
    return matching([name for name in _names(folder) if "/" not in name], _TOKENIZER_FILES)


def is_pointer(path: Path) -> bool:
    """Whether `path` is a file of a few lines by which git-lfs finds the real one."""
    try:
        if path.stat().st_size > _MOST_POINTER_BYTES:
            return False
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def check_weights_are_there(
    request: ModelRequest, folder: Path, names: Callable[[Path], Sequence[str]] | None = None
) -> None:
    """Refuse a `folder` that lacks a file of weights, and say what it holds instead.

    Args:
        names: tells all files where the model comes from, where that is not `folder` alone.

    Raises:
        ModelError
    """
    wanted = weight_files(folder, allow_pickle=request.allow_pickle)
    missing = absent(wanted, folder)
    if not missing:
        return
    model = f"Model {request.model_id!r}"
    if links := [name for name in missing if (folder / name).is_symlink()]:
        raise ModelError(f"{model}: {listed(links)} links to what is not there.", hint="Download the model again.")
    if len(missing) < len(wanted) or wanted != (WEIGHTS,):
        raise ModelError(
            f"{model} lacks {len(missing)} of its {len(wanted)} files of weights: {listed(missing)}.",
            hint="Download what is missing, for example with `hf download`.",
        )
    found = _instead((names or _names)(folder), request, folder)
    raise ModelError(f"{model} has no {WEIGHTS}: it {found.what}.", hint=found.cure)


def _instead(names: Sequence[str], request: ModelRequest, folder: Path) -> Finding:
    """What is there where `model.safetensors` and its index are not."""
    is_pickled = not absent(pickle_files(folder), folder) or bool(matching(names, ("pytorch_model*.bin",)))
    shards = [name for name in matching(names, ("*.safetensors",)) if _SHARDS.fullmatch(name)]
    if shards:
        return Finding(
            what=f"holds shards of weights ({listed(shards)}) without {WEIGHTS_INDEX}, which says what lies where",
            cure="Download that file too, or save the model again with save_pretrained.",
        )
    if is_pickled and not request.allow_pickle:
        return Finding(
            what="holds pickled weights, and kvray loads safetensors weights only, no pickled ones",
            cure="Save it with save_pretrained, which writes safetensors, or, if you trust whoever made it, pass "
            "--allow-pickle.",
        )
    if (found := foreign(names)) is not None:
        return found
    if files := gguf_files(names):
        return Finding(what=f"holds GGUF files ({listed(files)})", cure=f"Give the file itself: {folder / files[0]}.")
    if others := matching(names, ("*.safetensors", "*.bin", "*.pt", "*.pth")):
        return Finding(
            what=f"holds other files ({listed(others)}), which from_pretrained does not look for",
            cure=f"If they are its weights, rename them to {WEIGHTS}, or save the model with save_pretrained.",
        )
    return Finding(
        what="holds no weights at all",
        cure="Save the model with save_pretrained; for speed and memory alone, random:FOLDER makes random weights.",
    )


def no_config_error(place: str, names: Sequence[str], *, folder: Path, repository: str | None = None) -> ModelError:
    """The error for a folder or repository without config.json, whose files are called `names`.

    Args:
        place: what to call it, e.g. `Folder 'x'`.
        folder: where its files lie on this machine, if they do.
        repository: its id on the hub, if it is one.
    """
    found = _instead_of_config(names, folder, repository)
    told = ", so it is not a Transformers model" if found is None else f": it {found.what}"
    cure = "Give a folder that save_pretrained wrote, or a .gguf file." if found is None else found.cure
    return ModelError(f"{place} has no config.json{told}.", hint=cure)


def _instead_of_config(names: Sequence[str], folder: Path, repository: str | None) -> Finding | None:
    if (found := foreign([name for name in names if "/" not in name])) is not None:
        return found
    if files := gguf_files(names):
        is_here = (folder / files[0]).exists() or repository is None
        return Finding(
            what=f"holds GGUF files ({listed(files)})",
            cure=f"Give the file itself: {folder / files[0]}."
            if is_here
            else f"`hf download {repository} {files[0]}` prints the path to give.",
        )
    if inner := matching(names, ("*/config.json",)):
        inside = inner[0].rpartition("/")[0]
        is_here = (folder / inside).is_dir()
        return Finding(
            what=f"is no Transformers model, but {inside!r} in it has one",
            cure=f"Give {str(folder / inside)!r}." if is_here else "Download it and give that folder.",
        )
    return foreign(names)


def _names(folder: Path) -> list[str]:
    """Names of the files in `folder` and one level below, at most `_MOST_NAMES`."""
    return [name for name, _ in zip(_walk(folder), range(_MOST_NAMES), strict=False)]


def names_for_config(folder: Path) -> list[str]:
    """What `no_config_error` needs to know of a folder: also where a hub cache keeps its snapshots."""
    snapshots = [f"snapshots/{path.parent.name}/config.json" for path in folder.glob("snapshots/*/config.json")]
    return [*_names(folder), *snapshots]


def _walk(folder: Path) -> Iterator[str]:
    for path in _entries(folder):
        if path.is_dir():
            yield from (f"{path.name}/{inner.name}" for inner in _entries(path))
        else:
            yield path.name


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
