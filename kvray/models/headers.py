"""Headers of weight files: which tensors a safetensors file holds, and why a file cannot be read. Imports no torch."""

from __future__ import annotations

import json
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from kvray.errors import sentence_of

_LENGTH = struct.Struct("<Q")
_MOST_HEADER_BYTES = 100_000_000
"""What the safetensors library takes at most."""
_PAGES = (b"<!doctype", b"<html", b"<?xml", b'{"error')
_ZIP = b"PK"


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor as a header tells it; `dtype` in the words of safetensors, such as `BF16`."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """All tensors of the safetensors file at `path`, by name.

    Raises:
        OSError, SafetensorError: it cannot be read; `header_fault` says why.
    """
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        return {
            name: StoredTensor(dtype=str(one.get_dtype()), shape=tuple(one.get_shape())) for name, one in slices.items()
        }


def header_fault(path: Path) -> str | None:
    """Why the weights at `path` cannot be loaded, as the end of a sentence about the file; `None` if nothing shows it.

    Only the outermost form of a pickle is looked at: nothing in it is unpickled.
    """
    from safetensors import SafetensorError

    try:
        if path.suffix == ".bin":
            return _fault_of_any(path)
        read_header(path)
    except OSError as error:
        return f"cannot be read ({error.strerror or sentence_of(error)})"
    except SafetensorError as error:
        return _fault_of_any(path) or _fault_of_header(path) or f"is damaged ({sentence_of(error)})"
    return None


def _fault_of_any(path: Path) -> str | None:
    """What is wrong with a file of weights of whatever kind."""
    with path.open("rb") as file:
        begin = file.read(64)
    if not begin:
        return "is empty"
    if begin.lstrip().lower().startswith(_PAGES):
        return "is a web page or an answer in words, so its download failed"
    if path.suffix == ".bin" and begin.startswith(_ZIP) and not zipfile.is_zipfile(path):
        return "is cut off"
    if path.suffix != ".bin" and begin.startswith(_ZIP):
        return "is a pickle of PyTorch, whatever its name says"
    return None


def _fault_of_header(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(_LENGTH.size)
        if len(begin) < _LENGTH.size:
            return "is cut off in its header"
        (length,) = _LENGTH.unpack(begin)
        if length > _MOST_HEADER_BYTES:
            return "does not begin like a safetensors file"
        if length > size - _LENGTH.size:
            return "is cut off in its header"
        text = file.read(length)
    try:
        ends = [one["data_offsets"][1] for name, one in json.loads(text).items() if name != "__metadata__"]
        expected = _LENGTH.size + length + max(ends, default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if expected == size:
        return None
    how = "is cut off" if size < expected else "does not end where its tensors end"
    return f"{how}: it has {size:,} bytes, and {expected:,} by its header"
