"""What is known of a model before vLLM loads it: its config.json, read as it is. Imports no vLLM."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvray.candidate import DType
from kvray.engines.base import UNKNOWN_REVISION, ModelInfo, ModelRequest
from kvray.engines.hugging_face.conversion import convert_if_gguf
from kvray.engines.hugging_face.model_folder import config_path
from kvray.engines.hugging_face.shape_reader import found_shape
from kvray.engines.hugging_face.tokenizer import has_tokenizer
from kvray.errors import ModelError, sentence_of
from kvray.models.config_file import check_config_file
from kvray.models.folders import check_complete
from kvray.models.revision import revision_of
from kvray.models.source import SourceKind, parse_model_id
from kvray.models.stored_dtype import stored_dtype
from kvray.models.weight_files import weight_files

_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx")
"""Fields in which configs name the tokens that a model holds."""
_CONTAINED = ("default", "llama3", "longrope", "su", "mrope", "proportional")
"""Kinds of rotary scaling whose factor the config's length contains already."""
_GGUF_NOTE = (
    "The GGUF file's weights are measured unpacked, from a copy that was converted once; the server is given that copy."
)


def describe(request: ModelRequest) -> ModelInfo:
    """What the config says.

    Raises:
        ModelError: there is none, it cannot be read, or a local folder lacks weights or a tokenizer.
    """
    convert_if_gguf(request)
    source, folder = parse_model_id(request.model_id), config_path(request)
    config = read_config(folder)
    if source.kind is SourceKind.FOLDER:
        check_complete(request, folder)
    if source.kind is not SourceKind.RANDOM and not has_tokenizer(folder):
        raise ModelError(
            f"Model {request.model_id!r} has no tokenizer.", hint="Put it beside the weights with save_pretrained."
        )
    kinds, found = layer_kinds(config), found_shape(folder)
    return ModelInfo(
        model_id=source.portable_id,
        revision=UNKNOWN_REVISION if source.kind is SourceKind.FOLDER else revision_of(request, source, folder),
        architecture=architecture(config),
        max_context=max_context(config),
        native_dtype=native_dtype(request, folder, config),
        random_weights=source.kind is SourceKind.RANDOM,
        layer_kinds=kinds,
        packing=packing(config),
        shape=found.shape,
        shape_unknown=found.unknown,
        tensor_parallel=True,
        notes=(_GGUF_NOTE,) if source.kind is SourceKind.GGUF else (),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of `folder`.

    Raises:
        ModelError: it cannot be read.
    """
    path = folder / "config.json"
    try:
        check_config_file(path)
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"The config {str(path)!r} cannot be read: {sentence_of(error)}") from error
    if not isinstance(config, dict):
        raise ModelError(f"The config {str(path)!r} is no table of fields.")
    return config


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the language model, which models with images have beside others."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def architecture(config: Mapping[str, Any]) -> str:
    """The class that the config names, else its type."""
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else str(config.get("model_type") or "unknown")


def max_context(config: Mapping[str, Any]) -> int | None:
    """Tokens that vLLM lets the model hold: the least that its config names, stretched as its scaling says."""
    text = text_config(config)
    named = [value for name in _LENGTHS if type(value := text.get(name)) is int and value > 0]
    if not named:
        return None
    rotary = text.get("rope_parameters") or text.get("rope_scaling")
    if not isinstance(rotary, dict) or rotary.get("rope_type", rotary.get("type", "default")) in _CONTAINED:
        return min(named)
    factor, original = rotary.get("factor"), rotary.get("original_max_position_embeddings")
    length = original if type(original) is int and original > 0 else min(named)
    return math.floor(length * factor) if isinstance(factor, int | float) and factor >= 1 else length


def layer_kinds(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What each layer keeps of past tokens, where the config says so."""
    kinds = text_config(config).get("layer_types")
    return tuple(map(str, kinds)) if isinstance(kinds, list) else ()


def cache_groups(kinds: tuple[str, ...]) -> int:
    """Groups of layers that take blocks of their own for the same tokens: vLLM makes them as large as the rarest kind
    of layer."""
    counts = Counter(kinds).values()
    return sum(math.ceil(count / min(counts)) for count in counts) if counts else 1


def heads(config: Mapping[str, Any]) -> int | None:
    """Query heads, where the config says how many."""
    value = text_config(config).get("num_attention_heads")
    return value if type(value) is int and value > 0 else None


def head_dim(config: Mapping[str, Any]) -> int | None:
    """Elements of a head, where the config tells; not of latent attention, whose kernels are others."""
    text = text_config(config)
    if text.get("kv_lora_rank") is not None:
        return None
    named, width, count = text.get("head_dim"), text.get("hidden_size"), heads(config)
    if type(named) is int:
        return named
    return width // count if type(width) is int and count is not None else None


def packing(config: Mapping[str, Any]) -> str | None:
    """What the weights are packed with."""
    named = config.get("quantization_config")
    return str(named.get("quant_method", "an unknown method")) if isinstance(named, dict) else None


def native_dtype(request: ModelRequest, folder: Path, config: Mapping[str, Any]) -> DType:
    """The dtype that the config names, else that of the first weights; `float32` where neither tells."""
    named = config.get("dtype") or config.get("torch_dtype") or text_config(config).get("dtype")
    if named is None and parse_model_id(request.model_id).kind is not SourceKind.RANDOM:
        first = folder / weight_files(folder, allow_pickle=request.allow_pickle)[0]
        named = stored_dtype(first) if first.is_file() else None
    text = str(named).removeprefix("torch.")
    return DType(text) if text in set(DType) else DType.FLOAT32
