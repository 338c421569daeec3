"""The dtype of a checkpoint's weights, which `from_pretrained` loads where the config names none. Imports no torch."""

from __future__ import annotations

import json
import pickletools
import zipfile
from collections.abc import Iterable
from pathlib import Path

_SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_PICKLED = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
}

_LEGACY_PICKLES = 4
"""Before PyTorch 1.6 a file began with so many of them: a magic number, two of versions, and the weights."""


def indexed_dtype(index: Path) -> str | None:
    """What an index of shards says of them all, which few do."""
    try:
        named = json.loads(index.read_bytes())["metadata"]["dtype"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return str(named).removeprefix("torch.")


def stored_dtype(weights: Path) -> str | None:
    """The dtype of the first tensor of floats in the file `weights`, in the order in which Transformers looks at them.
    `None`: there is none, or the file cannot be read, which is told when it is loaded. Nothing of a pickle is run."""
    return _pickled_dtype(weights) if weights.suffix == ".bin" else _safetensors_dtype(weights)


def first_float(dtypes: Iterable[str]) -> str | None:
    """The first of `dtypes`, as safetensors names them, that a whole model can be loaded in."""
    return next((_SAFETENSORS[one] for one in dtypes if one in _SAFETENSORS), None)


def _safetensors_dtype(weights: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="np") as file:
            return first_float(file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError):
        return None


def _pickled_dtype(weights: Path) -> str | None:
    try:
        named = [_PICKLED[one] for one in _names_in_pickle(weights) if one in _PICKLED]
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    return named[0] if named else None


def _names_in_pickle(weights: Path) -> list[str]:
    """Names that the pickle imports from torch, read without importing them."""
    if not zipfile.is_zipfile(weights):
        with weights.open("rb") as file:
            codes = [code for _ in range(_LEGACY_PICKLES) for code in pickletools.genops(file)]
    else:
        with zipfile.ZipFile(weights) as archive:
            (name,) = [one for one in archive.namelist() if one.endswith("data.pkl")]
            codes = list(pickletools.genops(archive.read(name)))
    return [str(named).removeprefix("torch ") for code, named, _ in codes if code.name == "GLOBAL"]
