"""What is known of a GGUF file before it is loaded, from its header alone. Imports no library of the engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from kvray.candidate import AttentionBackend, AttentionChoice, DType
from kvray.engines.base import UNKNOWN_REVISION, ModelInfo, ModelRequest
from kvray.engines.llama_cpp.build import untried_note
from kvray.engines.llama_cpp.model_file import gguf_path, read_model
from kvray.engines.llama_cpp.shapes import known_number, layer_kinds, shape_of
from kvray.models.gguf_header import GgufHeader, tensor_bytes

_EAGER_ONLY = ("grok",)
"""Architectures for which llama.cpp turns flash attention off by itself. Source: `llama_init_from_model`."""


def describe(request: ModelRequest) -> ModelInfo:
    """What the file's header says.

    Raises:
        ModelError: the file is no whole model, or cannot be read.
    """
    path, header = gguf_path(request), read_model(request)
    attention = AttentionBackend.EAGER if header.architecture in _EAGER_ONLY else AttentionBackend.FLASH
    shape = shape_of(header)
    return ModelInfo(
        model_id=str(path.resolve()),
        revision=UNKNOWN_REVISION,
        architecture=header.architecture,
        max_context=known_number(header.own("context_length")) or None,
        native_dtype=DType.FLOAT32,
        layer_kinds=layer_kinds(header),
        default_attention=AttentionChoice(attention),
        missing_attentions=(AttentionBackend.FLASH,) if attention is AttentionBackend.EAGER else (),
        shape=shape,
        shape_unknown=None if shape is not None else "its header does not tell the sizes of its keys and values",
        packing=packing_of(header),
        weight_bytes=sum(_bytes_by_kind(header).values()),
        notes=() if (note := untried_note()) is None else (note,),
    )


def packing_of(header: GgufHeader) -> str | None:
    """How the file says that it keeps its weights, e.g. `Q4_K_M`, or else the type of most of their bytes; `None`: in
    float32."""
    by_kind = _bytes_by_kind(header)
    named = _file_types().get(header.fields.get("general.file_type"))
    most = named or max(by_kind, key=lambda kind: by_kind[kind])
    return None if most == "F32" else most


def _file_types() -> Mapping[Any, str]:
    """Names by the number that a file has for its type."""
    from gguf.constants import LlamaFileType

    return {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}


def _bytes_by_kind(header: GgufHeader) -> Counter[str]:
    found: Counter[str] = Counter()
    for tensor in header.tensors.values():
        found[tensor.kind_name] += tensor_bytes(tensor)
    return found
