"""From a Transformers config to a `ModelShape`, by the formulas that decoders share. Imports no torch.

Each type in `KNOWN_TYPES` is held against the real model on the meta device by a test. Of any other type nothing is
said: a wrong size would keep out a candidate that fits.
"""

from __future__ import annotations

from typing import Any

from kvray.engines.hugging_face.layer_sizes import LayerSizes
from kvray.engines.hugging_face.packing import packing_of
from kvray.forecast.shape import ModelShape

KNOWN_TYPES = frozenset(
    {
        *("apertus", "arcee", "axk1", "bamba", "bitnet", "bloom", "codegen", "cohere", "cohere2", "cohere2_moe", "cwm"),
        *("deepseek_v2", "deepseek_v3", "diffllama", "ernie4_5", "ernie4_5_moe", "exaone4", "falcon", "falcon_h1"),
        *("flex_olmo", "flint", "gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "glm", "glm4"),
        *("glm4_moe", "glm4_moe_lite", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite"),
        *("granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "helium"),
        *("hunyuan_v1_dense", "hunyuan_v1_moe", "hyperclovax", "internlm3", "iquestcoder", "jais2", "kolibri1"),
        *("laguna", "lfm2", "lfm2_moe", "llama", "mellum", "mimo_v2_flash", "minicpm3", "minimax_m2", "ministral"),
        *("ministral3", "mistral", "mixtral", "mpt", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt"),
        *("persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_moe_text", "qwen3_5_text"),
        *("qwen3_moe", "qwen3_next", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2", "vaultgemma"),
        "youtu",
    }
)
_LEARNED_POSITIONS = frozenset({"gpt2", "gpt_bigcode", "gpt_neo", "opt"})


def model_shape(config: Any) -> ModelShape | None:
    """The shape of a causal language model of this `config`; `None` where `unknown_because` says why.

    Raises:
        ValueError: a size is not positive.
    """
    if unknown_because(config) is not None:
        return None
    shape = shape_by_formulas(config)
    sizes = (shape.total_parameters, shape.vocab, shape.hidden, shape.intermediate, shape.heads)
    kept = [number for layer in shape.layers for number in (layer.kv_elements, layer.state_elements, layer.window or 0)]
    if min(sizes) < 1 or min(kept, default=0) < 0:
        raise ValueError(f"its sizes are not all positive: {shape.hidden=}, {shape.vocab=}, {shape.heads=}")
    return shape


def unknown_because(config: Any) -> str | None:
    """Why nothing can be said of a model's sizes, for people; `None` if it can."""
    if (packing := packing_of(config)) is not None:
        return f"its weights are packed with {packing}, so that a dtype does not tell their bytes"
    if config.model_type not in KNOWN_TYPES:
        return f"kvray has no formulas for models of type {config.model_type!r}"
    if getattr(config, "enable_moe_block", False):
        return f"kvray has no formulas for models of type {config.model_type!r} with experts"
    return None


def layer_kinds(config: Any) -> tuple[str, ...]:
    """What `transformers.cache_utils.get_layer_types_and_kwargs` says, which cannot be imported without torch. Layers
    that read the keys and values of earlier ones are `dummy`; before Transformers 5.23 it leaves these out."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = [_kind_by_fields(layer) for layer in config.per_layer_config]
    return tuple(
        "dummy" if mode == "reuse" or kind in ("moe", "mlp") else str(kind)
        for kind, mode in zip(kinds, _sharing_modes(config, len(kinds)), strict=False)
    )


def shape_by_formulas(config: Any) -> ModelShape:
    """The shape by the formulas, right or not: for `model_shape` and its test."""
    text = config.get_text_config(decoder=True)
    layers = [
        LayerSizes.of(layer, kind, number)
        for number, (layer, kind) in enumerate(zip(text.per_layer_config, layer_kinds(text), strict=True))
    ]
    experts = sum(layer.expert_parameters for layer in layers)
    embedding = text.vocab_size * text.hidden_size
    is_tied = bool(getattr(config, "tie_word_embeddings", True))
    lookup = _table_parameters(text)
    sparse = next((layer for layer in layers if layer.is_sparse), None)
    return ModelShape(
        total_parameters=embedding * (1 if is_tied else 2)
        + lookup
        + _parameters_beside(text)
        + sum(layer.dense_parameters for layer in layers)
        + experts,
        lookup_parameters=lookup + (0 if is_tied else embedding),
        expert_parameters=experts,
        experts=sparse.experts if sparse is not None else 0,
        experts_per_token=sparse.experts_per_token if sparse is not None else 0,
        vocab=text.vocab_size,
        hidden=text.hidden_size,
        intermediate=max(layer.widest for layer in layers),
        heads=layers[0].heads,
        layers=tuple(layer.kept for layer in layers),
    )


def _table_parameters(text: Any) -> int:
    """Parameters of tables that are read row by row: positions, and an embedding for every layer, not the tokens'."""
    positions = text.max_position_embeddings * text.hidden_size if text.model_type in _LEARNED_POSITIONS else 0
    width = getattr(text, "hidden_size_per_layer_input", None) or 0
    return positions + (text.vocab_size_per_layer_input * text.num_hidden_layers * width if width else 0)


def _parameters_beside(text: Any) -> int:
    """Parameters of matrices that belong to no layer: what feeds every layer an embedding, and AltUp's streams."""
    width = getattr(text, "hidden_size_per_layer_input", None) or 0
    streams = getattr(text, "altup_num_inputs", 1)
    return text.hidden_size * (text.num_hidden_layers * width + 2 * (streams - 1) * text.hidden_size)


def _sharing_modes(config: Any, layers: int) -> list[str | None]:
    """The library's `kv_sharing_modes`; versions without them name the number of layers that share."""
    modes: list[str | None] | None = getattr(config, "kv_sharing_modes", None)
    shared = getattr(config, "num_kv_shared_layers", None) or 0
    return modes or [None] * (layers - shared) + ["reuse"] * shared


def _kind_by_fields(layer: Any) -> str:
    if getattr(layer, "sliding_window", None) is not None:
        return "sliding_attention"
    if getattr(layer, "attention_chunk_size", None) is not None:
        return "chunked_attention"
    return "full_attention"
