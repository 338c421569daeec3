"""A first look at a GGUF file, before Transformers reads it: what its header says must be in the file.

The readers believe the header: a length that is wrong costs all memory, and a missing size becomes that of a 7B model.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from kvray.engines.transformers.plausible import MOST_LAYERS
from kvray.errors import ModelError

MOST_FIELDS, MOST_TENSORS, MOST_DIMENSIONS = 10_000, 1_000_000, 4
_STRING, _ARRAY = 8, 9
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def check_gguf_file(path: Path) -> None:
    """Refuse what cannot be converted.

    Raises:
        ModelError: the header is torn, or does not describe the file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        header = _Header(file, path.stat().st_size)
        fields, tensors = header.read()
    architecture = str(fields.get("general.architecture"))
    layers = fields.get(f"{architecture}.block_count")
    width = fields.get(f"{architecture}.embedding_length")
    if not (isinstance(layers, int) and 0 < layers <= min(MOST_LAYERS, len(tensors))):
        raise ModelError(f"its block_count {_shown(layers)} does not go with its {len(tensors)} tensors")
    embedding = tensors.get("token_embd.weight", ())
    if not embedding or width != embedding[0]:
        raise ModelError(f"its embedding_length {_shown(width)} is not that of its embedding {embedding!r}")
    inner = fields.get(f"{architecture}.feed_forward_length")
    has_experts = f"{architecture}.expert_count" in fields  # of a width of their own
    if (
        isinstance(inner, int)
        and not has_experts
        and not any(inner in shape for name, shape in tensors.items() if "ffn" in name)
    ):
        raise ModelError(f"its feed_forward_length {inner} is that of none of its tensors")


def _shown(value: object) -> str:
    return repr(value)[:40]


class _Header:
    """Reads a header once from the beginning; every length is held against what is left of the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self) -> tuple[Mapping[str, Any], Mapping[str, tuple[int, ...]]]:
        """Fields (`None` for arrays) and the shapes of tensors, innermost dimension first."""
        if self._take(4) != b"GGUF":
            raise ModelError("it does not begin with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise ModelError(f"its version {version} is neither 2 nor 3")
        tensors, fields = self._number("Q"), self._number("Q")
        if tensors > MOST_TENSORS or fields > MOST_FIELDS:
            raise ModelError(f"its header names {fields:,} fields and {tensors:,} tensors")
        read = {self._string(): self._value(self._number("I")) for _ in range(fields)}
        return read, dict(self._tensor() for _ in range(tensors))

    def _tensor(self) -> tuple[str, tuple[int, ...]]:
        name, dimensions = self._string(), self._number("I")
        if dimensions > MOST_DIMENSIONS:
            raise ModelError(f"its tensor {name[:80]!r} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))
        self._take(4 + 8)  # type and offset
        return name, shape

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._skip_array()
        return self._number(self._format(kind))

    def _skip_array(self) -> None:
        kind, length = self._number("I"), int(self._number("Q"))
        if kind == _STRING:
            self._check(8 * length)
            for _ in range(length):
                self._take(int(self._number("Q")))
        elif kind == _ARRAY:
            raise ModelError("it holds arrays of arrays")
        else:
            self._take(length * struct.calcsize(self._format(kind)))

    def _string(self) -> str:
        return self._take(int(self._number("Q"))).decode("utf-8", errors="replace")

    def _number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self._take(struct.calcsize(form)))[0]

    def _format(self, kind: int) -> str:
        if kind not in _FORMATS:
            raise ModelError(f"its header has a field of the unknown type {kind}")
        return _FORMATS[kind]

    def _take(self, length: int) -> bytes:
        self._check(length)
        self._left -= length
        return self._file.read(length)

    def _check(self, length: int) -> None:
        if length > self._left:
            raise ModelError(f"its header speaks of {length:,} bytes where {self._left:,} are left: it is torn")
