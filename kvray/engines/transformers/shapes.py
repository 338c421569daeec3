"""From a Transformers config to a `ModelShape`, by the formulas that decoders share. Imports no torch.

Each type in `KNOWN_TYPES` is held against the real model on the meta device by a test. Of any other type nothing is
said: a wrong size would keep out a candidate that fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvray.forecast.shape import LayerShape, ModelShape

KNOWN_TYPES = frozenset(
    {
        *("apertus", "arcee", "bamba", "codegen", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5"),
        *("exaone4", "falcon", "falcon_h1", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe"),
        *("glm4_moe_lite", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite", "granitemoe"),
        *("helium", "internlm3", "jais2", "llama", "minicpm3", "minimax_m2", "ministral3", "mistral", "mixtral"),
        *("nanochat", "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2"),
        *("qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm", "starcoder2"),
    }
)
_PLAIN_MLP = frozenset(
    {
        *("apertus", "arcee", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "jais2"),
        *("nanochat", "opt", "persimmon", "phi", "starcoder2"),
    }
)
"""Types whose MLP has two matrices; in all others a third one gates."""
_STATES = ("linear_attention", "hybrid", "hybrid_sliding")
_WITHOUT_KEYS = ("linear_attention", "conv", "dummy")


def model_shape(config: Any) -> ModelShape | None:
    """The shape of a causal language model of this `config`; `None` if its type is not known, or its weights are packed
    so that a dtype does not tell their bytes.

    Raises:
        ValueError: a size is not positive.
    """
    if config.model_type not in KNOWN_TYPES or getattr(config, "quantization_config", None) is not None:
        return None
    shape = shape_by_formulas(config)
    sizes = (shape.total_parameters, shape.vocab, shape.hidden, shape.intermediate, shape.heads)
    kept = [number for layer in shape.layers for number in (layer.kv_elements, layer.state_elements, layer.window or 0)]
    if min(sizes) < 1 or min(kept, default=0) < 0:
        raise ValueError(f"its sizes are not all positive: {shape.hidden=}, {shape.vocab=}, {shape.heads=}")
    return shape


def layer_kinds(config: Any) -> tuple[str, ...]:
    """What `transformers.cache_utils.get_layer_types_and_kwargs` says, which cannot be imported without torch."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = [_kind_by_fields(layer) for layer in config.per_layer_config]
    sharing = getattr(config, "kv_sharing_modes", None) or [None] * len(kinds)
    return tuple(
        "dummy" if mode == "reuse" or kind in ("moe", "mlp") else str(kind)
        for kind, mode in zip(kinds, sharing, strict=False)
    )


def shape_by_formulas(config: Any) -> ModelShape:
    """The shape by the formulas, right or not: for `model_shape` and its test."""
    text = config.get_text_config(decoder=True)
    sizes = _Sizes.of(text)
    kinds = layer_kinds(text)
    sparse = [_is_sparse(text, number) for number in range(len(kinds))]
    experts = sum(sparse) * sizes.expert_parameters
    dense = sum(
        sizes.mixer_parameters(kind) + sizes.mlp_parameters(is_sparse=is_sparse)
        for kind, is_sparse in zip(kinds, sparse, strict=True)
    )
    embedding = text.vocab_size * text.hidden_size
    positions = text.max_position_embeddings * text.hidden_size if text.model_type in _LEARNED_POSITIONS else 0
    is_tied = bool(getattr(config, "tie_word_embeddings", True))
    return ModelShape(
        total_parameters=embedding * (1 if is_tied else 2) + positions + dense + experts,
        lookup_parameters=positions + (0 if is_tied else embedding),
        expert_parameters=experts,
        experts=sizes.experts if any(sparse) else 0,
        experts_per_token=sizes.experts_per_token if any(sparse) else 0,
        vocab=text.vocab_size,
        hidden=text.hidden_size,
        intermediate=sizes.widest,
        heads=sizes.heads,
        layers=tuple(sizes.layer(kind) for kind in kinds),
    )


_LEARNED_POSITIONS = frozenset({"gpt2", "gpt_bigcode", "gpt_neo", "opt"})


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """What the config calls by many names."""

    hidden: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    latent: _LatentSizes | None
    inner: int
    matrices: int
    experts: int
    experts_per_token: int
    expert_inner: int
    shared_inner: int
    window: int | None
    mamba: _MambaSizes | None

    @classmethod
    def of(cls, text: Any) -> _Sizes:
        hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
        head_dim = int(getattr(text, "head_dim", None) or hidden // heads)
        latent = _LatentSizes.of(text)
        inner = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * hidden
        expert_inner = int(getattr(text, "moe_intermediate_size", None) or inner)
        shared = getattr(text, "shared_expert_intermediate_size", None)
        if shared is None:
            shared = (getattr(text, "n_shared_experts", None) or 0) * expert_inner
        return cls(
            hidden=hidden,
            heads=heads,
            kv_heads=_kv_heads(text, heads),
            key_dim=head_dim if latent is None else latent.key_dim,
            value_dim=head_dim if latent is None else latent.value_dim,
            latent=latent,
            inner=int(inner),
            matrices=2 if text.model_type in _PLAIN_MLP else 3,
            experts=_first(text, ("num_local_experts", "num_experts", "n_routed_experts")),
            experts_per_token=_first(text, ("num_experts_per_tok", "num_experts_per_token")),
            expert_inner=expert_inner,
            shared_inner=int(shared),
            window=_window(text),
            mamba=_MambaSizes.of(text),
        )

    @property
    def expert_parameters(self) -> int:
        """All experts of a layer."""
        return self.experts * self.matrices * self.hidden * self.expert_inner

    @property
    def widest(self) -> int:
        """Inner activations of a token: of the experts that it chose together."""
        chosen = self.experts_per_token * self.expert_inner + self.shared_inner
        return max(self.inner, chosen) if self.experts else self.inner

    def mixer_parameters(self, kind: str) -> int:
        """Attention, Mamba or both, with the norm before it. Biases are left out: they are a thousandth of a matrix."""
        parameters = self.hidden
        if kind in _STATES and self.mamba is not None:
            parameters += self.mamba.parameters(self.hidden)
        if kind in _WITHOUT_KEYS:
            return parameters
        if self.latent is not None:
            return parameters + self.latent.parameters(self.hidden, self.heads)
        return parameters + self.hidden * (self.heads + self.kv_heads) * (self.key_dim + self.value_dim)

    def mlp_parameters(self, *, is_sparse: bool) -> int:
        """The dense part of a layer's MLP, its router included, with the norm before it."""
        if not is_sparse:
            return self.hidden + self.matrices * self.hidden * self.inner
        return self.hidden + self.experts * self.hidden + self.matrices * self.hidden * self.shared_inner

    def layer(self, kind: str) -> LayerShape:
        """What a layer of that kind keeps."""
        state = self.mamba.state_elements if kind in _STATES and self.mamba is not None else 0
        if kind in _WITHOUT_KEYS:
            return LayerShape(state_elements=state)
        return LayerShape(
            kv_heads=self.kv_heads,
            key_dim=self.key_dim,
            value_dim=self.value_dim,
            window=self.window if "sliding" in kind or "chunked" in kind else None,
            state_elements=state,
        )


@dataclass(frozen=True, kw_only=True)
class _MambaSizes:
    """A Mamba-2 mixer. Source: `BambaMixer` and `FalconH1Mixer` of Transformers."""

    inner: int
    heads: int
    groups: int
    state: int
    kernel: int

    @classmethod
    def of(cls, text: Any) -> _MambaSizes | None:
        if not hasattr(text, "mamba_d_state"):
            return None
        inner = getattr(text, "mamba_d_ssm", None) or text.mamba_expand * text.hidden_size
        return cls(
            inner=int(inner),
            heads=int(text.mamba_n_heads),
            groups=int(text.mamba_n_groups),
            state=int(text.mamba_d_state),
            kernel=int(text.mamba_d_conv),
        )

    @property
    def channels(self) -> int:
        """Of the convolution."""
        return self.inner + 2 * self.groups * self.state

    @property
    def state_elements(self) -> int:
        """The convolution's last inputs, and each head's state."""
        return self.channels * self.kernel + self.inner * self.state

    def parameters(self, hidden: int) -> int:
        """Projections in and out, convolution, and one value per head three times."""
        projections = hidden * (self.inner + self.channels + self.heads) + self.inner * hidden
        return projections + self.channels * self.kernel + self.inner + 3 * self.heads


@dataclass(frozen=True, kw_only=True)
class _LatentSizes:
    """Multi-head latent attention. The cache keeps what it expands to. Source: `DeepseekV3Attention`."""

    query_rank: int | None
    rank: int
    rotary_dim: int
    plain_dim: int
    value_dim: int

    @classmethod
    def of(cls, text: Any) -> _LatentSizes | None:
        if not getattr(text, "kv_lora_rank", None):
            return None
        return cls(
            query_rank=text.q_lora_rank,
            rank=int(text.kv_lora_rank),
            rotary_dim=int(text.qk_rope_head_dim),
            plain_dim=int(text.qk_nope_head_dim),
            value_dim=int(text.v_head_dim),
        )

    @property
    def key_dim(self) -> int:
        """Elements of one head's key."""
        return self.rotary_dim + self.plain_dim

    def parameters(self, hidden: int, heads: int) -> int:
        """Down and up for the query (or straight), down and up for keys and values, and out."""
        width = heads * self.key_dim
        query = hidden * width if self.query_rank is None else self.query_rank * (hidden + width)
        expanded = heads * (self.plain_dim + self.value_dim)
        return query + hidden * (self.rank + self.rotary_dim) + self.rank * expanded + heads * self.value_dim * hidden


def _kv_heads(text: Any, heads: int) -> int:
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        return 1
    names = ("num_kv_heads", "num_key_value_heads") if text.model_type == "falcon" else ("num_key_value_heads",)
    return _first(text, names) or heads


def _kind_by_fields(layer: Any) -> str:
    if getattr(layer, "sliding_window", None) is not None:
        return "sliding_attention"
    if getattr(layer, "attention_chunk_size", None) is not None:
        return "chunked_attention"
    return "full_attention"


def _window(text: Any) -> int | None:
    window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None)
    return None if window is None else int(window)


def _is_sparse(text: Any, layer: int) -> bool:
    """Whether a layer's MLP consists of experts."""
    if not _first(text, ("num_local_experts", "num_experts", "n_routed_experts")):
        return False
    kinds: Sequence[str] | None = getattr(text, "mlp_layer_types", None)
    if kinds is not None:
        return kinds[layer] == "sparse"
    if layer in (getattr(text, "mlp_only_layers", None) or ()) or layer < (
        getattr(text, "first_k_dense_replace", None) or 0
    ):
        return False
    return (layer + 1) % (getattr(text, "decoder_sparse_step", None) or 1) == 0


def _first(text: Any, names: Sequence[str]) -> int:
    return next((int(value) for name in names if (value := getattr(text, name, None)) is not None), 0)
