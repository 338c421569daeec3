"""A cache that forgets: the first tokens (attention sinks) and the most recent ones are held, the rest is dropped.

Transformers has no such cache for models that attend to everything. A generated snippet prints the two classes as they
stand here, so they use nothing but torch and transformers. Source of the idea: Xiao et al. 2023, "Efficient Streaming
Language Models with Attention Sinks" (arXiv:2309.17453). Unlike there, a key keeps the position that it was computed
at, so the model sees what an attention mask of sinks and window would show it, without recomputing anything.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class SinkWindowLayer(DynamicLayer):
    """Holds at most `window` tokens between calls: the first `sinks`, and the latest of the others.

    Each call attends to what was held and to all that it brings: a prompt sees itself whole and is cut down afterwards.
    Not for prompts that are padded on the left: the padding would become the sinks.
    """

    is_croppable = False
    is_initialized: bool
    keys: Any
    values: Any

    def __init__(self, window: int, sinks: int) -> None:
        if not 0 <= sinks < window:
            raise ValueError(f"sinks must be from 0 to less than the window of {window} tokens, not {sinks}")
        super().__init__()
        self.window = window
        self.sinks = sinks
        self.seen = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add states of shape (batch, heads, new tokens, head size); returns those to attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.seen += key_states.shape[-2]
        keys = torch.cat([self.keys, key_states], dim=-2)
        values = torch.cat([self.values, value_states], dim=-2)
        self.keys, self.values = self._held(keys), self._held(values)
        return keys, values

    def _held(self, states: torch.Tensor) -> torch.Tensor:
        if states.shape[-2] <= self.window:
            return states
        recent = self.window - self.sinks
        return torch.cat([states[..., : self.sinks, :], states[..., -recent:, :]], dim=-2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys: counted back from the newest, so that causal masking holds and hides none."""
        held = min(self.seen, self.window)
        return held + query_length, self.seen - held

    def get_seq_length(self) -> int:
        """Tokens seen, also those dropped: the next token's position."""
        return self.seen

    def reset(self) -> None:
        """Forget everything."""
        self.keys = self.values = None
        self.is_initialized = False
        self.seen = 0

    def crop(self, tokens_to_remove: int) -> None:
        """What was dropped cannot come back."""
        if tokens_to_remove != 0:
            raise NotImplementedError("a cache that drops tokens cannot be rolled back")


class SlidingWindowCache(Cache):
    """`SinkWindowLayer` for each layer with full attention; layers of other kinds are as the model has them."""

    def __init__(self, config: Any, window: int, sinks: int) -> None:
        own_layers = DynamicCache(config=config).layers
        super().__init__(
            layers=[SinkWindowLayer(window, sinks) if type(layer) is DynamicLayer else layer for layer in own_layers]
        )
