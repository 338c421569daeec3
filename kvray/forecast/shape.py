"""`ModelShape`: all of a model's configuration that bytes and FLOPs depend on, whatever the dtype. Engines fill it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What one layer keeps of past tokens.

    Attributes:
        kv_heads: heads of keys and values, fewer than the query's under GQA and MQA; 0: it keeps none.
        key_dim, value_dim: elements of one head's key and value, as they are kept.
        expanded_key_dim, expanded_value_dim: of multi-head latent attention, which keeps one latent and one rotated key
            as if they were a head's key and value: elements of each query head's key and value, which are computed
            from all that is kept whenever the layer attends. 0: attention reads what is kept.
        window: tokens that the layer looks back on at most; `None`: all.
        state_elements: elements of the state that a convolution, linear attention or Mamba keeps for each sequence,
            however long it is.
    """

    kv_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    expanded_key_dim: int = 0
    expanded_value_dim: int = 0
    window: int | None = None
    state_elements: int = 0

    @property
    def kv_elements(self) -> int:
        """Elements of keys and values for one token of one sequence."""
        return self.kv_heads * (self.key_dim + self.value_dim)

    @property
    def is_latent(self) -> bool:
        """Whether keys and values are computed from what is kept."""
        return self.expanded_key_dim > 0

    @property
    def attended_key_dim(self) -> int:
        """Elements of one head's key in attention."""
        return self.expanded_key_dim or self.key_dim

    @property
    def attended_value_dim(self) -> int:
        """Elements of one head's value in attention."""
        return self.expanded_value_dim or self.value_dim


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder's sizes. Parameters are counts, of all layers together.

    Attributes:
        total_parameters: each weight once; a table that serves as embedding and as head is one weight.
        lookup_parameters: of tables that are read row by row and never multiplied: positions, and the embedding where
            the head has a weight of its own.
        expert_parameters: those of `total_parameters` that lie in experts which are chosen token by token.
        experts, experts_per_token: of each layer that has such; 0 in a dense model.
        hidden, intermediate: width of the residual stream, and of the widest inner activation of a token.
        heads: of the query.
    """

    total_parameters: int
    lookup_parameters: int
    expert_parameters: int = 0
    experts: int = 0
    experts_per_token: int = 0
    vocab: int
    hidden: int
    intermediate: int
    heads: int
    layers: tuple[LayerShape, ...]

    @property
    def active_parameters(self) -> int:
        """Parameters that one token is multiplied with."""
        return round(self.multiplied_parameters(tokens=1))

    @property
    def head_parameters(self) -> int:
        """Parameters of the output head, with which only a prompt's last token is multiplied."""
        return self.vocab * self.hidden

    @property
    def kv_elements_per_token(self) -> int:
        """Elements of keys and values that all layers together keep for a token that no window has dropped."""
        return sum(layer.kv_elements for layer in self.layers)

    def multiplied_parameters(self, *, tokens: int) -> float:
        """Parameters that must be read to work on `tokens` at once: an expert is read when one token at least chose it,
        and tokens are taken to choose evenly and independently."""
        dense = self.total_parameters - self.lookup_parameters - self.expert_parameters
        if not self.experts:
            return float(dense)
        untouched = (1 - self.experts_per_token / self.experts) ** tokens
        return dense + self.expert_parameters * (1 - untouched)
