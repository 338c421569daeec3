"""Refuses candidates that ask for what this engine does not have, before the weights are read."""

from __future__ import annotations

from dataclasses import fields

from kvray.candidate import AttentionBackend, Candidate, CompileMode, DType
from kvray.engines.base import UnsupportedError
from kvray.engines.llama_cpp.axes import cache_of_types
from kvray.engines.llama_cpp.settings import CACHE_TYPES, ContextSettings

_MADE_OF_THE_CELL = {"n_ctx", "n_seq_max", "flash_attention"}
_AXES = {field.name for field in fields(ContextSettings)} - _MADE_OF_THE_CELL


def check_candidate(candidate: Candidate) -> None:
    """Compare with what the engine knows.

    Raises:
        UnsupportedError
    """
    if unknown := dict(candidate.settings).keys() - _AXES:
        raise UnsupportedError(f"llama.cpp has no axis {', '.join(sorted(unknown))}")
    for name in ("type_k", "type_v"):
        if (value := candidate.setting(name)) is not None and value not in CACHE_TYPES:
            raise UnsupportedError(f"llama.cpp keeps {name} as {', '.join(CACHE_TYPES)}, not as {value}")
    if candidate.cache is not (needed := cache_of_types(candidate)) or candidate.cache_params:
        raise UnsupportedError(f"these types of keys and values make a {needed} cache, not {candidate.cache_choice}")
    known = (
        candidate.attention in (AttentionBackend.FLASH, AttentionBackend.EAGER),
        candidate.dtype is DType.FLOAT32,
        candidate.compile is CompileMode.OFF,
        candidate.prefill_chunk is None,
        candidate.weights_limit_mib is None,
    )
    if not all(known):
        raise UnsupportedError(f"llama.cpp computes in float32, with attention flash or eager: not {candidate.label}")
