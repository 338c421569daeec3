"""Which kind of failure llama.cpp's own words mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kvray.engines.failures import OutOfMemoryError, UnsupportedError
from kvray.errors import KvrayError, ModelError

_NO_MEMORY = re.compile(
    r"failed to (?:re)?(?:serve|allocate|create)\b.*buffer|unable to allocate|out of memory|"
    r"not enough memory|cudaMalloc failed|bad_alloc|alloc_tensor_range",
    re.IGNORECASE,
)
_UNKNOWN_MODEL = re.compile(r"unknown model architecture|unknown pre-tokenizer type|unsupported model architecture")
_SAYS_NOTHING = ("failed to load model",)
_DECODE_CODES = {
    1: "it found no room in the cache for the tokens",
    2: "the computation was aborted",
    -1: "it does not accept the tokens",
}


def load_error(path: Path, words: Sequence[str]) -> KvrayError:
    """Why the file at `path` was not loaded."""
    said = _joined(words)
    if _NO_MEMORY.search(said):
        return OutOfMemoryError(f"llama.cpp ran out of memory while it loaded the weights: {said}")
    if _UNKNOWN_MODEL.search(said):
        return UnsupportedError(f"llama.cpp does not know this model: {said}")
    return ModelError(f"llama.cpp cannot load {str(path)!r}: {said}")


def context_error(words: Sequence[str]) -> KvrayError:
    """Why no context was made."""
    said = _joined(words)
    if _NO_MEMORY.search(said):
        return OutOfMemoryError(f"llama.cpp ran out of memory for the cache or its buffers: {said}")
    return UnsupportedError(f"llama.cpp makes no context with these settings: {said}")


def decode_error(code: int, words: Sequence[str]) -> KvrayError:
    """Why `llama_decode` returned `code`, which is not 0."""
    said = _joined(words)
    if _NO_MEMORY.search(said) or code == -2:
        return OutOfMemoryError(f"llama.cpp ran out of memory while it computed: {said}")
    reason = _DECODE_CODES.get(code, "it could not compute")
    return UnsupportedError(f"llama.cpp decoded nothing (code {code}): {reason}; {said}")


def _joined(words: Sequence[str]) -> str:
    telling = [one for one in words if one not in _SAYS_NOTHING] or list(words)
    return "; ".join(telling) or "it does not say why"
