"""An engine that is ready and does no more: for timing how a trial's process starts. Importable in that process."""

from __future__ import annotations

from typing import NoReturn

from kvray.engines.base import ModelRequest, UnsupportedError
from kvray.engines.transformers import TransformersAdapter

READY = "import torch, transformers.models.llama.modeling_llama; torch.ones(2).sum().item()"
"""What every way of starting a process ends with."""


class ReadyAdapter(TransformersAdapter):
    """Preloads what the real engine preloads."""

    def fetch_weights(self, request: ModelRequest) -> None:
        """Do the first tensor operation."""
        del request
        exec(READY)

    def load(self, *arguments: object, **options: object) -> NoReturn:
        """End the trial."""
        del arguments, options
        raise UnsupportedError("ready is all it is")
