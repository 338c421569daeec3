"""Checks a GGUF file before an engine reads it: what its header says must be in the file.

Transformers' reader does not check the header. A wrong length would make it allocate all memory, and a missing size
would become that of a 7B model. Errors here are the ends of sentences; who calls puts the file's name before them.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import functools
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kvray.errors import ModelError
from kvray.models.checkpoint import is_pointer
from kvray.models.config_file import MOST_LAYERS

MOST_FIELDS, MOST_TENSORS, MOST_DIMENSIONS = 10_000, 1_000_000, 4
_STRING, _ARRAY = 8, 9
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """Shape (innermost dimension first), kind of numbers by GGUF's table, and bytes from the begin of the data."""

    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def kind_name(self) -> str:
        """E.g. `Q4_1`."""
        return _kinds().get(self.kind, (f"type {self.kind}", 1, 0))[0]


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """What a file says of itself.

    Attributes:
        fields: by key; arrays of at most `MOST_LAYERS` numbers as tuples, others as `None`.
        tensors: by name.
    """

    fields: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """The family by the name that llama.cpp has for it."""
        return str(self.fields.get("general.architecture"))

    def own(self, key: str) -> Any:
        """The value of one of the architecture's own keys, such as `block_count`; `None` where it is not there."""
        return self.fields.get(f"{self.architecture}.{key}")


def check_gguf_file(path: Path) -> GgufHeader:
    """Refuse what is no whole model by its header, and return the header.

    Raises:
        ModelError: it is no whole model, its header is torn, or does not describe the file. A fragment of a sentence.
        OSError: it cannot be read.
    """
    if is_pointer(path):
        raise ModelError("it is a git-lfs pointer, not what it stands for.", hint="Run `git lfs pull` in its folder.")
    with path.open("rb") as file:
        header = _Header(file, path.stat().st_size)
        fields, tensors = header.read()
    _check_is_model(fields, tensors, path)
    _check_sizes(fields, {name: tensor.shape for name, tensor in tensors.items()})
    _check_whole(tensors, data_bytes=header.left)
    return GgufHeader(fields=fields, tensors=tensors)


def _check_is_model(fields: Mapping[str, Any], tensors: Mapping[str, GgufTensor], path: Path) -> None:
    architecture = str(fields.get("general.architecture"))
    parts, part = fields.get("split.count"), fields.get("split.no")
    if isinstance(parts, int) and parts > 1:
        number = part + 1 if isinstance(part, int) else "?"
        raise ModelError(
            f"it is part {number} of {parts}.",
            hint=f"Merge them first: llama-gguf-split --merge {_first_part(path.name)} MERGED.gguf.",
        )
    if fields.get("general.type", "model") != "model" or architecture == "clip":
        kind = "mmproj" if architecture == "clip" else _shown(fields["general.type"])
        raise ModelError(f"it holds no language model ({kind}).", hint="Give the file with the model's own weights.")
    if not tensors:
        raise ModelError("it holds no weights, only a vocabulary.", hint="Give the file with the model's weights.")
    if fields.get(f"{architecture}.attention.head_count") == 0:
        raise ModelError(f"its architecture {architecture} has no attention, so there is no KV cache to choose.")


def _first_part(name: str) -> str:
    return re.sub(r"-\d{5}-of-", "-00001-of-", name)


def _check_sizes(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    architecture = str(fields.get("general.architecture"))
    layers = fields.get(f"{architecture}.block_count")
    width = fields.get(f"{architecture}.embedding_length")
    if not (isinstance(layers, int) and 0 < layers <= min(MOST_LAYERS, len(shapes))):
        raise ModelError(f"its block_count {_shown(layers)} does not go with its {len(shapes)} tensors")
    embedding = shapes.get("token_embd.weight", ())
    if not embedding or width != embedding[0]:
        raise ModelError(f"its embedding_length {_shown(width)} is not that of its embedding {embedding!r}")
    inner = fields.get(f"{architecture}.feed_forward_length")
    has_experts = f"{architecture}.expert_count" in fields  # of a width of their own
    if (
        isinstance(inner, int)
        and not has_experts
        and not any(inner in shape for name, shape in shapes.items() if "ffn" in name)
    ):
        raise ModelError(f"its feed_forward_length {inner} is that of none of its tensors")


def _check_whole(tensors: Mapping[str, GgufTensor], *, data_bytes: int) -> None:
    """Refuse a file that ends before its tensors do; `data_bytes` are behind the header, padding included."""
    needed = max(tensor.offset + tensor_bytes(tensor) for tensor in tensors.values())
    if needed > data_bytes:
        raise ModelError(
            f"it is cut off: its tensors end {needed:,} bytes behind its header, and {data_bytes:,} are there.",
            hint="Download it again.",
        )


def tensor_bytes(tensor: GgufTensor) -> int:
    """Bytes of a tensor's data; 0 where its kind of numbers is not known."""
    block, block_bytes = _kinds().get(tensor.kind, ("", 1, 0))[1:]
    return math.prod(tensor.shape) // block * block_bytes


@functools.cache
def _kinds() -> Mapping[int, tuple[str, int, int]]:
    """Name, elements of a block and its bytes, by the number that a header has for a kind."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    return {
        kind.value: (kind.name, *size)
        for kind, size in GGML_QUANT_SIZES.items()
        if isinstance(kind, GGMLQuantizationType)
    }


def _shown(value: object) -> str:
    return repr(value)[:40]


class _Header:
    """Reads a header once from the beginning; every length is held against what is left of the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.left = size

    def read(self) -> tuple[Mapping[str, Any], Mapping[str, GgufTensor]]:
        """Fields (as `GgufHeader` has them) and tensors; afterwards `left` bytes of the file are not read."""
        if not self.left:
            raise ModelError("it is empty.", hint="Download it again.")
        if self._take(4) != b"GGUF":
            raise ModelError("it does not begin with GGUF.", hint="Give a GGUF file, or download it again.")
        version = self._number("I")
        if version not in (2, 3):
            raise ModelError(f"its version {version} is neither 2 nor 3")
        tensors, fields = self._number("Q"), self._number("Q")
        if tensors > MOST_TENSORS or fields > MOST_FIELDS:
            raise ModelError(f"its header names {fields:,} fields and {tensors:,} tensors")
        read = {self._string(): self._value(self._number("I")) for _ in range(fields)}
        return read, dict(self._tensor() for _ in range(tensors))

    def _tensor(self) -> tuple[str, GgufTensor]:
        name, dimensions = self._string(), self._number("I")
        if dimensions > MOST_DIMENSIONS:
            raise ModelError(f"its tensor {name[:80]!r} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))
        return name, GgufTensor(shape=shape, kind=self._number("I"), offset=self._number("Q"))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        return self._number(self._format(kind))

    def _array(self) -> tuple[Any, ...] | None:
        """Numbers, where there are no more than layers; anything else is skipped."""
        kind, length = self._number("I"), int(self._number("Q"))
        if kind == _STRING:
            self._check(8 * length)
            for _ in range(length):
                self._take(int(self._number("Q")))
        elif kind == _ARRAY:
            raise ModelError("it holds arrays of arrays")
        else:
            form = self._format(kind)
            data = self._take(length * struct.calcsize(form))
            return struct.unpack(f"<{length}{form}", data) if length <= MOST_LAYERS else None
        return None

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
        self.left -= length
        return self._file.read(length)

    def _check(self, length: int) -> None:
        if length > self.left:
            raise ModelError(
                f"its header speaks of {length:,} bytes where {self.left:,} are left: it is cut off or damaged.",
                hint="Download it again.",
            )
