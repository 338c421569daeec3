"""What is known of a model before its weights are loaded: `describe` reads its config, its tokenizer and headers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvray.candidate import AttentionBackend, AttentionChoice, DType
from kvray.engines.base import UNKNOWN_REVISION, ModelInfo, ModelRequest
from kvray.engines.hugging_face.model_folder import config_path
from kvray.engines.hugging_face.packing import packing_of
from kvray.engines.hugging_face.quiet import quiet_library
from kvray.engines.hugging_face.shapes import model_shape, unknown_because
from kvray.engines.hugging_face.tokenizer import text_note
from kvray.engines.transformers.architecture import check_behaviour, not_tunable, refuse_other_kinds
from kvray.engines.transformers.code_source import check_code_source
from kvray.engines.transformers.context_limit import context_limit
from kvray.engines.transformers.model_class import (
    architecture_of,
    auto_class_name,
    missing_attentions,
    model_class,
    named_attention,
)
from kvray.errors import ModelError, sentence_of
from kvray.models import hub
from kvray.models.config_file import check_config_file
from kvray.models.folders import check_complete
from kvray.models.revision import revision_of
from kvray.models.source import ModelSource, SourceKind, parse_model_id
from kvray.models.stored_dtype import first_float, indexed_dtype, stored_dtype
from kvray.models.weight_files import WEIGHTS_INDEX, weight_files


def describe(request: ModelRequest) -> ModelInfo:
    """What the model's config, its class and its tokenizer say. Imports torch; `outline` says the same without.

    Raises:
        ModelError: the config is missing or cannot be read, the model is no decoder with a KV cache, or a local folder
            lacks weights or a tokenizer.
    """
    folder = config_path(request)
    config = read_config(request, folder)
    with config_errors(request):
        found = model_class(config, folder, trust_remote_code=request.trust_remote_code)
        check_behaviour(request.model_id, config, found)
        kinds = _layer_kinds(config.get_text_config(decoder=True))
        missing = missing_attentions(found)
    return told(request, folder, config, layer_kinds=kinds, missing=missing)


def told(
    request: ModelRequest,
    folder: Path,
    config: Any,
    *,
    layer_kinds: tuple[str, ...],
    missing: tuple[AttentionBackend, ...],
) -> ModelInfo:
    """What is known of a decoder, from its `config` and all that lies in its `folder` but the weights.

    Args:
        missing: the attentions that its class has no code for.

    Raises:
        ModelError: no layer keeps keys and values, weights or tokenizer are missing, or the hub does not answer.
    """
    source = parse_model_id(request.model_id)
    if source.kind is SourceKind.FOLDER:
        check_complete(request, folder)
    with config_errors(request):
        info = with_attention(info_of_config(source, config, layer_kinds), config, missing)
    info = with_dtype(info, request, folder, config)
    if (note := text_note(request, folder, config)) is not None:
        info = replace(info, notes=(*info.notes, note))
    if source.kind is SourceKind.GGUF:
        info = replace(info, notes=(*info.notes, _UNPACKED))
    if source.kind is SourceKind.FOLDER:
        return info  # `revision` reads all of its weights
    return replace(info, revision=revision_of(request, source, folder))


def info_of_config(source: ModelSource, config: Any, layer_kinds: tuple[str, ...]) -> ModelInfo:
    """What needs neither the weights nor the model's code; `with_dtype` and `with_attention` add the baseline's.

    Raises:
        ModelError: no layer keeps keys and values.
    """
    if layer_kinds and not set(layer_kinds) - _WITHOUT_KEYS:
        raise not_tunable(source.model_id, config, "keeps a state of its own in every layer, no keys and values")
    return ModelInfo(
        model_id=source.portable_id,
        revision=UNKNOWN_REVISION,
        architecture=architecture_of(config),
        loader=auto_class_name(architecture_of(config)),
        max_context=context_limit(config),
        native_dtype=DType.FLOAT32,
        random_weights=source.kind is SourceKind.RANDOM,
        layer_kinds=layer_kinds,
        shape=model_shape(config),
        shape_unknown=unknown_because(config),
        packing=packing_of(config),
        tensor_parallel=bool(getattr(config.get_text_config(decoder=True), "base_model_tp_plan", None)),
    )


_UNPACKED = (
    "The GGUF file's weights are measured unpacked, from a copy that was converted once. Code that uses "
    "Transformers reads the file itself, so it takes longer to start than the load time here."
)
_WITHOUT_KEYS = {"linear_attention", "conv", "dummy"}
"""Kinds of layers that hold a state of fixed size, or none, instead of keys and values."""


def _layer_kinds(text_config: Any) -> tuple[str, ...]:
    from transformers.cache_utils import get_layer_types_and_kwargs

    kinds, _ = get_layer_types_and_kwargs(text_config)
    return tuple(str(kind) for kind in kinds)


def read_config(request: ModelRequest, folder: Path) -> Any:
    """The library's configuration of the model in `folder`.

    Raises:
        ModelError: it cannot be read, or says that the model is not a decoder that writes text.
    """
    from transformers import AutoConfig

    with config_errors(request), quiet_library():
        check_config_file(folder / "config.json")
        check_code_source(request, folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=request.trust_remote_code)
        refuse_other_kinds(request.model_id, config)
    return config


@contextmanager
def config_errors(request: ModelRequest) -> Iterator[None]:
    """Turn whatever a config leads to into one `ModelError`: it is outside input, and every architecture checks its own
    in its own way."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"Model {request.model_id!r} brings its own Python code.",
                hint="If you trust its author, pass --trust-remote-code.",
            ) from error
        raise ModelError(f"The config of model {request.model_id!r} cannot be read: {sentence_of(error)}") from error


def with_attention(info: ModelInfo, config: Any, missing: tuple[AttentionBackend, ...]) -> ModelInfo:
    """`info` with the attention that the library picks when none is asked for: the config's, else SDPA, else eager."""
    picked = AttentionBackend.EAGER if AttentionBackend.SDPA in missing else AttentionBackend.SDPA
    default = named_attention(config) or AttentionChoice(picked)
    return replace(info, missing_attentions=missing, default_attention=default)


def with_dtype(info: ModelInfo, request: ModelRequest, folder: Path, config: Any) -> ModelInfo:
    """`info` with the dtype that the library loads when nothing is set: the config's, else that of the weights.

    Raises:
        ModelError: the weights are on a hub that does not answer.
    """
    named = getattr(config, "dtype", None)
    found = str(named).removeprefix("torch.") if named is not None else _dtype_of_weights(request, folder)
    if found in set(DType):
        return replace(info, native_dtype=DType(found))
    told = (
        f"{found} weights are not measured" if found else "the dtype of its weights is not known before they are here"
    )
    return replace(info, notes=(*info.notes, f"Measured as float32: {told}."))


def _dtype_of_weights(request: ModelRequest, folder: Path) -> str | None:
    source = parse_model_id(request.model_id)
    if source.kind is SourceKind.RANDOM:
        return DType.FLOAT32  # PyTorch's own
    names = weight_files(folder, allow_pickle=request.allow_pickle)
    if (found := indexed_dtype(folder / WEIGHTS_INDEX)) is not None and len(names) > 1:
        return found
    if (folder / names[0]).is_file() or source.kind is not SourceKind.HUB:
        return stored_dtype(folder / names[0])
    return first_float(hub.tensor_dtypes(source.model_id, names[0], revision=folder.name, offline=request.offline))
