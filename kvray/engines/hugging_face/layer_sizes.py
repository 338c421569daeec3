"""`LayerSizes`: what one decoder layer's weights and its memory of past tokens amount to, read from its config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvray.engines.hugging_face.mixer_sizes import DeltaNetSizes, LatentSizes, MambaSizes
from kvray.forecast.shape import LayerShape

_PLAIN_MLP = frozenset(
    {
        *("apertus", "arcee", "bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj"),
        *("jais2", "mpt", "nanochat", "nemotron", "opt", "persimmon", "phi", "starcoder2"),
    }
)
"""Types whose MLP has two matrices; in all others a third one gates."""
_GATED_ATTENTION = frozenset({"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"})
"""Types whose query projection makes a gate for the output too."""
_STATES = ("linear_attention", "hybrid", "hybrid_sliding")
_WITHOUT_KEYS = ("linear_attention", "conv", "dummy")


@dataclass(frozen=True, kw_only=True)
class LayerSizes:
    """One layer. Parameters are counts of weights; biases are left out, they are a thousandth of a matrix.

    Attributes:
        dense_parameters: all but those of its experts, norms and router included.
        expert_parameters: of all its experts together.
        experts, experts_per_token: 0 where its MLP has none.
        widest: inner activations of a token in its MLP: of the experts that it chose together.
        kept: what it keeps of past tokens.
    """

    heads: int
    dense_parameters: int
    expert_parameters: int
    experts: int
    experts_per_token: int
    widest: int
    kept: LayerShape

    @property
    def is_sparse(self) -> bool:
        """Whether its MLP consists of experts."""
        return self.experts > 0

    @classmethod
    def of(cls, config: Any, kind: str, number: int) -> LayerSizes:
        """Layer `number` of a model, of the library's `kind`, with its own `config`."""
        attention, mlp = _Attention.of(config, kind), _Mlp.of(config, kind, number)
        return cls(
            heads=attention.heads,
            dense_parameters=_mixer_parameters(config, kind, attention) + mlp.dense_parameters + _beside(config),
            expert_parameters=mlp.expert_parameters,
            experts=mlp.experts,
            experts_per_token=mlp.experts_per_token,
            widest=mlp.widest,
            kept=_kept(config, kind, attention),
        )


@dataclass(frozen=True, kw_only=True)
class _Attention:
    """Heads and their sizes, under the names that configs have for them."""

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    latent: LatentSizes | None

    @classmethod
    def of(cls, config: Any, kind: str) -> _Attention:
        heads = int(config.num_attention_heads)
        head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        kv_heads = _kv_heads(config, heads)
        if config.model_type == "mimo_v2_flash" and kind == "sliding_attention":
            kv_heads *= 2
        return cls(
            heads=heads,
            kv_heads=kv_heads,
            key_dim=head_dim,
            value_dim=int(getattr(config, "v_head_dim", None) or head_dim),
            latent=LatentSizes.of(config),
        )

    def parameters(self, config: Any, kind: str) -> int:
        """Query, key, value and output. A layer that reads another's keys and values has none of its own for them."""
        hidden = int(config.hidden_size)
        if self.latent is not None:
            return self.latent.parameters(hidden, self.heads)
        query = self.heads * self.key_dim * (2 if config.model_type in _GATED_ATTENTION else 1)
        output = self.heads * self.value_dim
        if kind == "dummy":
            return hidden * (query + output)
        shares_values = getattr(config, "attention_k_eq_v", False) and kind == "full_attention"
        kept = self.kv_heads * (self.key_dim if shares_values else self.key_dim + self.value_dim)
        return hidden * (query + kept + output)


def _mixer_parameters(config: Any, kind: str, attention: _Attention) -> int:
    """Attention, what keeps a state, or both, with the norm before it."""
    hidden = int(config.hidden_size)
    parameters = hidden
    mamba, delta = MambaSizes.of(config), DeltaNetSizes.of(config)
    if kind in _STATES and mamba is not None:
        parameters += mamba.parameters(hidden)
    if kind in _STATES and delta is not None:
        parameters += delta.parameters(hidden)
    if kind == "conv":
        parameters += hidden * (4 * hidden + int(config.conv_L_cache))
    return parameters if kind in ("linear_attention", "conv") else parameters + attention.parameters(config, kind)


def _kept(config: Any, kind: str, attention: _Attention) -> LayerShape:
    state, mamba, delta = 0, MambaSizes.of(config), DeltaNetSizes.of(config)
    if kind in _STATES:
        state = (mamba.state_elements if mamba is not None else 0) + (delta.state_elements if delta is not None else 0)
    if kind == "conv":
        state = int(config.hidden_size) * int(config.conv_L_cache)
    if kind in _WITHOUT_KEYS:
        return LayerShape(state_elements=state)
    window = _window(config) if "sliding" in kind or "chunked" in kind else None
    if attention.latent is not None:
        return replace(attention.latent.kept, window=window)
    # Falcon's code writes shared heads out before it caches them.
    writes_out = getattr(config, "new_decoder_architecture", False)
    return LayerShape(
        kv_heads=attention.heads if writes_out else attention.kv_heads,
        key_dim=attention.key_dim,
        value_dim=attention.value_dim,
        window=window,
        state_elements=state,
    )


@dataclass(frozen=True, kw_only=True)
class _Mlp:
    """`shared` is the width of what runs for every token beside the experts."""

    hidden: int
    matrices: int
    inner: int
    experts: int
    experts_per_token: int
    expert_inner: int
    shared: int

    @classmethod
    def of(cls, config: Any, kind: str, number: int) -> _Mlp:
        inner = _inner(config, kind, number)
        expert_inner = int(getattr(config, "moe_intermediate_size", None) or inner)
        is_sparse = _is_sparse(config, number)
        return cls(
            hidden=int(config.hidden_size),
            matrices=2 if config.model_type in _PLAIN_MLP else 3,
            inner=inner,
            experts=_first(config, _EXPERTS) if is_sparse else 0,
            experts_per_token=_first(config, _EXPERTS_PER_TOKEN) if is_sparse else 0,
            expert_inner=expert_inner,
            shared=_shared_inner(config, inner=inner, expert_inner=expert_inner),
        )

    @property
    def dense_parameters(self) -> int:
        """What is not an expert, with the norm before it."""
        if not self.experts:
            return self.hidden + self.matrices * self.hidden * self.inner
        return self.hidden + self.experts * self.hidden + self.matrices * self.hidden * self.shared

    @property
    def expert_parameters(self) -> int:
        """All experts."""
        return self.experts * self.matrices * self.hidden * self.expert_inner

    @property
    def widest(self) -> int:
        """Inner activations of a token."""
        return self.experts_per_token * self.expert_inner + self.shared if self.experts else self.inner


_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk")


def _inner(config: Any, kind: str, number: int) -> int:
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    if isinstance(inner, Sequence):
        inner = inner[number]
    if inner is None:
        inner = int(getattr(config, "expansion_ratio", 4)) * config.hidden_size
    if config.model_type == "granitemoehybrid" and not config.num_local_experts:
        return int(config.shared_intermediate_size)
    if config.model_type == "lfm2" and config.block_auto_adjust_ff_dim:
        multiple = int(config.block_multiple_of)
        adjusted = int((config.block_ffn_dim_multiplier or 1) * int(2 * inner / 3))
        return -(-adjusted // multiple) * multiple
    return int(inner) * (2 if kind == "dummy" and getattr(config, "use_double_wide_mlp", False) else 1)


def _shared_inner(config: Any, *, inner: int, expert_inner: int) -> int:
    for name in ("shared_expert_intermediate_size", "shared_intermediate_size"):
        if (width := getattr(config, name, None)) is not None:
            return int(width)
    if config.model_type == "hunyuan_v1_moe":
        return inner
    count = next((value for name in _SHARED_EXPERTS if (value := getattr(config, name, None))), 0)
    return int(count) * expert_inner


_SHARED_EXPERTS = ("n_shared_experts", "moe_num_shared_experts")


def _beside(config: Any) -> int:
    """Parameters of matrices beside mixer and MLP: those for a layer's own token embedding, and LAuReL's."""
    width = getattr(config, "hidden_size_per_layer_input", None) or 0
    return int(2 * config.hidden_size * (width + (getattr(config, "laurel_rank", None) or 0)))


def _kv_heads(config: Any, heads: int) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    names = ("num_kv_heads", "num_key_value_heads") if config.model_type == "falcon" else ("num_key_value_heads",)
    return _first(config, names) or heads


def _window(config: Any) -> int | None:
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    return None if window is None else int(window)


def _is_sparse(config: Any, number: int) -> bool:
    """Whether a layer's MLP consists of experts."""
    if not _first(config, _EXPERTS):
        return False
    kinds: Sequence[str] | None = getattr(config, "mlp_layer_types", None)
    if kinds is not None:
        return kinds[number] == "sparse"
    last = getattr(config, "moe_layer_end_index", number)
    if (
        number in (getattr(config, "mlp_only_layers", None) or ())
        or not _first(config, _DENSE_LAYERS) <= number <= last
    ):
        return False
    return (number + 1) % (_first(config, _SPARSE_STEP) or 1) == 0


_DENSE_LAYERS = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
_SPARSE_STEP = ("decoder_sparse_step", "moe_layer_interval")


def _first(config: Any, names: Sequence[str]) -> int:
    value = next((value for name in names if (value := getattr(config, name, None)) is not None), 0)
    return int(value[0] if isinstance(value, Sequence) else value)
