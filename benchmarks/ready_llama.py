"""llama.cpp ready and no more: for timing how a trial's process starts. Importable in that process."""

from __future__ import annotations

from typing import NoReturn

from kvray.engines.base import ModelRequest, UnsupportedError
from kvray.engines.llama_cpp import LlamaCppAdapter

READY_LLAMA = "import llama_cpp; llama_cpp.llama_backend_init(); llama_cpp.llama_print_system_info()"
"""What both ways of starting a process end with."""


class ReadyLlamaAdapter(LlamaCppAdapter):
    """Preloads what the real engine preloads."""

    def fetch_weights(self, request: ModelRequest) -> None:
        """Start the backend, before which no weights can be read."""
        del request
        exec(READY_LLAMA)

    def load(self, *arguments: object, **options: object) -> NoReturn:
        """End the trial."""
        del arguments, options
        raise UnsupportedError("ready is all it is")
