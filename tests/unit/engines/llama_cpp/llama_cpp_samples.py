"""GGUF files that hold little more than a header, and candidates of the engine `llama_cpp`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import DeviceFacts

HIDDEN, INNER, WORDS, HEADS, KV_HEADS = 64, 128, 16, 2, 1
CPU = DeviceFacts(device=DeviceType.CPU, device_name="a CPU")
GPU = DeviceFacts(device=DeviceType.CUDA, device_name="a GPU", gpu_count=1)
Change = Callable[[gguf.GGUFWriter], Any]


def write_model(
    path: Path,
    change: Change = lambda writer: None,
    *,
    architecture: str = "llama",
    layers: int = 2,
    heads: int = HEADS,
    kv_heads: int = KV_HEADS,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> Path:
    """A file whose header describes a model; its weights are zeros. `change` adds fields."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    change(writer)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (WORDS, HIDDEN), "output": (WORDS, HIDDEN)}
    shapes |= {f"blk.{layer}.ffn_up": (INNER, HIDDEN) for layer in range(layers)}
    for name, shape in shapes.items():
        packed = gguf.quants.quantize(np.zeros(shape, np.float32), kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def candidate(
    *,
    attention: AttentionBackend = AttentionBackend.FLASH,
    cache: CacheStrategy = CacheStrategy.STATIC,
    batch_size: int = 1,
    **settings: Any,
) -> Candidate:
    """One of the engine's, with these axes set."""
    return Candidate(
        engine="llama_cpp",
        cache=cache,
        attention=attention,
        dtype=DType.FLOAT32,
        batch_size=batch_size,
        settings=tuple(settings.items()),
    )
