"""Which files of a folder hold the weights, by the rules of `from_pretrained`. Names only: nothing is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from kvray.errors import ModelError, sentence_of

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLED_WEIGHTS = "pytorch_model.bin"
PICKLED_WEIGHTS_INDEX = "pytorch_model.bin.index.json"
_SHARD = re.compile(r"[\w][\w.-]{0,200}", re.ASCII)
"""What `from_pretrained` may be led to: a path would leave the folder."""


def weight_files(folder: Path, *, allow_pickle: bool) -> tuple[str, ...]:
    """Names of the files that `from_pretrained` reads from `folder`, whether they are there or not: pickles only where
    they may be, and where there is nothing else.

    Raises:
        ModelError: as `safetensors_files`.
    """
    safe = safetensors_files(folder)
    if allow_pickle and absent(safe, folder) and not absent(pickle_files(folder), folder):
        return pickle_files(folder)
    return safe


def safetensors_files(folder: Path) -> tuple[str, ...]:
    """Names of the safetensors files of the model in `folder`, by its config or the index that lies there, if any.

    Raises:
        ModelError: the index is none, or a file of another kind is named, which Transformers would take for a pickle.
    """
    named = _named_by_config(folder / "config.json")
    if named is None:
        return _indexed_files(folder, WEIGHTS, WEIGHTS_INDEX, ".safetensors")
    if named.endswith(".safetensors.index.json"):
        return _indexed_files(folder, named, named, ".safetensors")
    _check_beside(folder / "config.json", (named,), ".safetensors")
    return (named,)


def pickle_files(folder: Path) -> tuple[str, ...]:
    """Names of the pickled files of the model in `folder`, by the index that lies there, if any.

    Raises:
        ModelError: as `safetensors_files`.
    """
    return _indexed_files(folder, PICKLED_WEIGHTS, PICKLED_WEIGHTS_INDEX, ".bin")


def named_tensors(names: Sequence[str]) -> str:
    """E.g. `2 tensors of the model, such as lm_head.weight`."""
    return (
        f"1 tensor of the model, {names[0]}"
        if len(names) == 1
        else f"{len(names)} tensors of the model, such as {names[0]}"
    )


def absent(names: Iterable[str], folder: Path) -> list[str]:
    """The `names` that are no files of `folder`."""
    return [name for name in names if not (folder / name).is_file()]


def index_names(index: Path) -> dict[str, str]:
    """File by tensor, as the index says.

    Raises:
        ModelError: it cannot be read, or is not an index.
    """
    try:
        return {str(tensor): str(name) for tensor, name in json.loads(index.read_bytes())["weight_map"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{str(index)!r} is not an index of weights: {sentence_of(error)}") from error


def _named_by_config(config: Path) -> str | None:
    """The file or index that `from_pretrained` reads before any other, by the field `transformers_weights`."""
    try:
        values = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    named = values.get("transformers_weights") if isinstance(values, dict) else None
    return None if named is None else str(named)


def _indexed_files(folder: Path, single: str, index_name: str, suffix: str) -> tuple[str, ...]:
    index = folder / index_name
    if (single != index_name and (folder / single).is_file()) or not index.is_file():
        return (single,)
    names = tuple(sorted(set(index_names(index).values())))
    _check_beside(index, names, suffix)
    return names or (single,)


def _check_beside(by: Path, names: Sequence[str], suffix: str) -> None:
    if strange := [name for name in names if not (_SHARD.fullmatch(name) and name.endswith(suffix))]:
        raise ModelError(
            f"{str(by)!r} names {strange[0][:80]!r}, which is no {suffix} file beside it.",
            hint="Save the model with save_pretrained, which writes safetensors.",
        )
