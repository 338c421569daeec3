"""Sizes of what mixes tokens in a layer in place of plain attention: latent attention, Mamba-2, gated delta nets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvray.forecast.shape import LayerShape


@dataclass(frozen=True, kw_only=True)
class LatentSizes:
    """Multi-head latent attention. The cache keeps the latent as the key, and the rotated part of the key as the value,
    of a single head. Source: `DeepseekV3Attention`, in every version of Transformers from 5.16 on.
    """

    query_rank: int | None
    rank: int
    rotary_dim: int
    plain_dim: int
    value_dim: int

    @classmethod
    def of(cls, config: Any) -> LatentSizes | None:
        """`None` where a model has plain attention."""
        if not getattr(config, "kv_lora_rank", None):
            return None
        return cls(
            query_rank=config.q_lora_rank,
            rank=int(config.kv_lora_rank),
            rotary_dim=int(config.qk_rope_head_dim),
            plain_dim=int(config.qk_nope_head_dim),
            value_dim=int(config.v_head_dim),
        )

    @property
    def key_dim(self) -> int:
        """Elements of one head's key."""
        return self.rotary_dim + self.plain_dim

    @property
    def kept(self) -> LayerShape:
        """What a layer keeps."""
        return LayerShape(
            kv_heads=1,
            key_dim=self.rank,
            value_dim=self.rotary_dim,
            expanded_key_dim=self.key_dim,
            expanded_value_dim=self.value_dim,
        )

    def parameters(self, hidden: int, heads: int) -> int:
        """Down and up for the query (or straight), down and up for keys and values, and out."""
        width = heads * self.key_dim
        query = hidden * width if self.query_rank is None else self.query_rank * (hidden + width)
        expanded = heads * (self.plain_dim + self.value_dim)
        return query + hidden * (self.rank + self.rotary_dim) + self.rank * expanded + heads * self.value_dim * hidden


@dataclass(frozen=True, kw_only=True)
class MambaSizes:
    """A Mamba-2 mixer. Source: `BambaMixer` and `FalconH1Mixer`."""

    inner: int
    heads: int
    groups: int
    state: int
    kernel: int

    @classmethod
    def of(cls, config: Any) -> MambaSizes | None:
        """`None` where a model has none."""
        if not hasattr(config, "mamba_n_heads"):
            return None
        inner = getattr(config, "mamba_d_ssm", None) or config.mamba_expand * config.hidden_size
        return cls(
            inner=int(inner),
            heads=int(config.mamba_n_heads),
            groups=int(config.mamba_n_groups),
            state=int(config.mamba_d_state),
            kernel=int(config.mamba_d_conv),
        )

    @property
    def channels(self) -> int:
        """Channels of the convolution."""
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
class DeltaNetSizes:
    """A gated delta net. Source: `Qwen3NextGatedDeltaNet`."""

    keys: int
    values: int
    value_heads: int
    key_dim: int
    kernel: int

    @classmethod
    def of(cls, config: Any) -> DeltaNetSizes | None:
        """`None` where a model has none."""
        if not hasattr(config, "linear_num_value_heads"):
            return None
        return cls(
            keys=int(config.linear_num_key_heads) * int(config.linear_key_head_dim),
            values=int(config.linear_num_value_heads) * int(config.linear_value_head_dim),
            value_heads=int(config.linear_num_value_heads),
            key_dim=int(config.linear_key_head_dim),
            kernel=int(config.linear_conv_kernel_dim),
        )

    @property
    def channels(self) -> int:
        """Channels of the convolution: query, key and value."""
        return 2 * self.keys + self.values

    @property
    def state_elements(self) -> int:
        """The convolution's last inputs, and each value head's state: key size × value size."""
        return self.channels * self.kernel + self.key_dim * self.values

    def parameters(self, hidden: int) -> int:
        """Projections of query, key, value, gate and two values per head; convolution; output."""
        projections = hidden * (self.channels + self.values + 2 * self.value_heads)
        return projections + self.channels * self.kernel + self.values * hidden
