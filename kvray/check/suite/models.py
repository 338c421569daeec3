"""The suite's models: three small decoders, defined by a few numbers and a seed.

Each is a folder as Transformers and vLLM read it and a GGUF file as llama.cpp does (`files`), of the same weights. They
are large enough that every kind of cache takes them and so small that a run takes a tenth of a second.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvray.check.suite.weights import Tensor, Weights, digest_of, fill

CONTEXT_LIMIT = 2048
BOS, EOS = 0, 1
_LOGITS_SPREAD = 4.0
"""Standard deviation of the logits: so wide that the first choice leads by far more than rounding changes."""
_SCORES_SPREAD = 3.0
"""Standard deviation of attention scores: so wide that single tokens of the past matter, and a cache that loses one
shows."""
_GATHERED = 1.5
"""What attention adds to a token, beside what an MLP adds."""


_ADDED_SCALE = 16.0
"""What each layer of the model with a tied embedding adds, so that the answer is not the token that was read."""


class Attention(enum.StrEnum):
    """What the heads of a suite's model share, and how far they see."""

    FULL = "full"
    """Every head has keys and values of its own."""
    GROUPED = "gqa"
    """Two heads share keys and values."""
    SLIDING = "sliding"
    """Five of six layers see a window, the sixth sees all tokens."""


@dataclass(frozen=True, kw_only=True)
class SuiteModel:
    """One model of the suite.

    Attributes:
        window: tokens that a layer with a window sees; `None`: there is none.
    """

    attention: Attention
    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    seed: int
    window: int | None = None

    @property
    def name(self) -> str:
        """E.g. `gqa`."""
        return self.attention.value

    @property
    def has_window(self) -> bool:
        """Whether it is of the family Gemma 3, whose layers mostly see a window; the others are of Llama's."""
        return self.window is not None

    @functools.cached_property
    def weights(self) -> Weights:
        """All tensors by the names that Transformers has for them."""
        return fill(_tensors(self), self.seed)

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the weights, so that results of unlike models are never compared."""
        return digest_of(self.weights)

    @property
    def config(self) -> dict[str, Any]:
        """What stands in its config.json. Nothing is left to a library's default."""
        return {**_shared_config(self), **(_gemma_config(self) if self.has_window else _llama_config())}


def _shared_config(model: SuiteModel) -> dict[str, Any]:
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS,
        "dtype": "float32",
        "eos_token_id": EOS,
        "head_dim": model.head_dim,
        "hidden_size": model.hidden,
        "intermediate_size": model.inner,
        "max_position_embeddings": CONTEXT_LIMIT,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_key_value_heads": model.kv_heads,
        "pad_token_id": EOS,
        "rms_norm_eps": NORM_EPSILON,
        "tie_word_embeddings": model.has_window,
        "use_cache": True,
        "vocab_size": model.vocabulary,
    }


NORM_EPSILON = 1e-6
ROPE_BASE, FAR_ROPE_BASE = 10_000.0, 1_000_000.0
"""The first is for layers with a window and for all layers of Llama, the second for Gemma's layers without one."""
FULL_EVERY = 6
"""llama.cpp knows Gemma 3 as five layers with a window and one without, and reads no other pattern."""


def _llama_config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "mlp_bias": False,
        "model_type": "llama",
        "rope_parameters": {"rope_theta": ROPE_BASE, "rope_type": "default"},
    }


def _gemma_config(model: SuiteModel) -> dict[str, Any]:
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": [_layer_kind(layer) for layer in range(model.layers)],
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": model.head_dim,
        "rope_parameters": {
            "full_attention": {"rope_theta": FAR_ROPE_BASE, "rope_type": "default"},
            "sliding_attention": {"rope_theta": ROPE_BASE, "rope_type": "default"},
        },
        "sliding_window": model.window,
    }


def _layer_kind(layer: int) -> str:
    return "full_attention" if (layer + 1) % FULL_EVERY == 0 else "sliding_attention"


def _tensors(model: SuiteModel) -> Mapping[str, Tensor]:
    found = {"model.embed_tokens.weight": _matrix(model.vocabulary, model.hidden, gain=_embedding_gain(model))}
    for layer in range(model.layers):
        parts = _attention(model) | _mlp(model) | _norms(model)
        found |= {f"model.layers.{layer}.{name}.weight": tensor for name, tensor in parts.items()}
    found["model.norm.weight"] = _norm(model, model.hidden)
    if not model.has_window:  # else the embedding is used again
        found["lm_head.weight"] = _matrix(model.vocabulary, model.hidden, gain=_LOGITS_SPREAD)
    return found


def _embedding_gain(model: SuiteModel) -> float:
    """As an output it makes logits; as an input alone its values are about 1."""
    return _LOGITS_SPREAD if model.has_window else math.sqrt(model.hidden)


def _attention(model: SuiteModel) -> dict[str, Tensor]:
    width, kv_width = model.heads * model.head_dim, model.kv_heads * model.head_dim
    gain = 1.0 if model.has_window else math.sqrt(_SCORES_SPREAD)  # where they are normed, the norm widens them
    return {
        "self_attn.q_proj": _matrix(width, model.hidden, gain=gain),
        "self_attn.k_proj": _matrix(kv_width, model.hidden, gain=gain),
        "self_attn.v_proj": _matrix(kv_width, model.hidden, gain=_GATHERED),
        "self_attn.o_proj": _matrix(model.hidden, width, gain=_GATHERED),
    }


def _mlp(model: SuiteModel) -> dict[str, Tensor]:
    return {
        "mlp.gate_proj": _matrix(model.inner, model.hidden),
        "mlp.up_proj": _matrix(model.inner, model.hidden),
        "mlp.down_proj": _matrix(model.hidden, model.inner),
    }


def _norms(model: SuiteModel) -> dict[str, Tensor]:
    found = {name: _norm(model, model.hidden) for name in ("input_layernorm", "post_attention_layernorm")}
    if model.has_window:
        found["pre_feedforward_layernorm"] = _norm(model, model.hidden)
        added = ("post_attention_layernorm", "post_feedforward_layernorm")
        found |= {name: _norm(model, model.hidden, scale=_ADDED_SCALE) for name in added}
        wide = math.sqrt(_SCORES_SPREAD)
        found |= {f"self_attn.{name}": _norm(model, model.head_dim, scale=wide) for name in ("q_norm", "k_norm")}
    return found


def _matrix(rows: int, columns: int, *, gain: float = 1.0) -> Tensor:
    """One that turns values of about 1 into values of about `gain`."""
    return Tensor((rows, columns), spread=gain * math.sqrt(3.0 / columns))


def _norm(model: SuiteModel, width: int, *, scale: float = 1.0) -> Tensor:
    """Scales about `scale`. Gemma keeps them less 1."""
    return Tensor((width,), spread=0.25, centre=scale - 1.0 if model.has_window else scale, is_norm=True)


MODELS: Mapping[Attention, SuiteModel] = {
    model.attention: model
    for model in (
        SuiteModel(
            attention=Attention.FULL,
            vocabulary=260,
            hidden=256,
            inner=512,
            layers=2,
            heads=4,
            kv_heads=4,
            head_dim=64,
            seed=5,
        ),
        SuiteModel(
            attention=Attention.GROUPED,
            vocabulary=260,
            hidden=256,
            inner=512,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=64,
            seed=2,
        ),
        SuiteModel(
            attention=Attention.SLIDING,
            vocabulary=260,
            hidden=128,
            inner=256,
            layers=6,
            heads=2,
            kv_heads=1,
            head_dim=64,
            seed=1,
            window=128,
        ),
    )
}
"""The fixed set. A change of it is a new `SUITE_VERSION`."""
