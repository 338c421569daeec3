"""What is known of a GGUF file before it is loaded, from its header alone. Imports no library of the engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvray.candidate import AttentionBackend, AttentionChoice, DType
from kvray.engines.base import UNKNOWN_REVISION, ModelInfo, ModelRequest
from kvray.engines.llama_cpp.shapes import layer_kinds, shape_of
from kvray.errors import ModelError, sentence_of
from kvray.models.gguf_header import GgufHeader, check_gguf_file, tensor_bytes
from kvray.models.source import SourceKind, parse_model_id

PLAIN_KINDS = ("F32", "F16", "BF16")
_EAGER_ONLY = ("grok",)
"""Architectures for which llama.cpp turns flash attention off by itself. Source: `llama_init_from_model`."""


def gguf_path(request: ModelRequest) -> Path:
    """The GGUF file of `request`.

    Raises:
        ModelError: the model is something else.
    """
    source = parse_model_id(request.model_id)
    if source.kind is not SourceKind.GGUF:
        raise ModelError(
            f"llama.cpp reads GGUF files, and model {request.model_id!r} is none.",
            hint="Name one for this engine with --model-for llama_cpp=FILE.gguf, or make one with llama.cpp's "
            "convert_hf_to_gguf.py.",
        )
    return source.local_path


def read_model(request: ModelRequest) -> GgufHeader:
    """The header of the model's file, checked.

    Raises:
        ModelError: the file is no whole model, or cannot be read.
    """
    path = gguf_path(request)
    try:
        return check_gguf_file(path)
    except (OSError, ModelError) as error:
        raise ModelError(
            f"GGUF file {str(path)!r} cannot be loaded: {sentence_of(error)}",
        ) from error


def describe(request: ModelRequest) -> ModelInfo:
    """What the file's header says.

    Raises:
        ModelError: the file is no whole model, or cannot be read.
    """
    header = read_model(request)
    context = header.own("context_length")
    attention = AttentionBackend.EAGER if header.architecture in _EAGER_ONLY else AttentionBackend.FLASH
    shape = shape_of(header)
    return ModelInfo(
        model_id=parse_model_id(request.model_id).portable_id,
        revision=UNKNOWN_REVISION,
        architecture=header.architecture,
        max_context=context if isinstance(context, int) and context > 0 else None,
        native_dtype=DType.FLOAT32,
        layer_kinds=layer_kinds(header),
        default_attention=AttentionChoice(attention),
        missing_attentions=(AttentionBackend.FLASH,) if attention is AttentionBackend.EAGER else (),
        shape=shape,
        shape_unknown=None if shape is not None else "its header does not tell the sizes of its keys and values",
        packing=packing_of(header),
        weight_bytes=sum(_bytes_by_kind(header).values()),
    )


def packing_of(header: GgufHeader) -> str | None:
    """The type in which most bytes of the weights are kept, e.g. `GGUF Q4_1`; `None`: they are plain numbers."""
    by_kind: Mapping[str, Any] = _bytes_by_kind(header)
    most = max(by_kind, key=lambda kind: by_kind[kind])
    return None if most in PLAIN_KINDS else f"GGUF {most}"


def _bytes_by_kind(header: GgufHeader) -> Counter[str]:
    found: Counter[str] = Counter()
    for tensor in header.tensors.values():
        found[tensor.kind_name] += tensor_bytes(tensor)
    return found
