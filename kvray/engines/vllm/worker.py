"""What vLLM's own workers tell of themselves. vLLM imports this into each of them, whose class it is mixed into."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any


class KvrayWorker:
    """Methods that are called by name in each worker; what they return is plain data."""

    model_runner: Any
    cache_config: Any
    vllm_config: Any
    device: Any

    def kvray_seen(self) -> dict[str, Any]:
        """What runs: the attention backends of the layers, the cache's tensors, threads and graphs."""
        import torch

        layers = list(self.vllm_config.compilation_config.static_forward_context.values())
        attending = [one for one in layers if hasattr(one, "attn_backend")]
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in _tensors(self.model_runner.kv_caches)
        }
        return {
            "pid": os.getpid(),
            "backends": [one.attn_backend.get_name() for one in attending],
            "kv_dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in _tensors(self.model_runner.kv_caches)],
            "kv_cache_dtypes": [str(getattr(one, "kv_cache_dtype", "auto")) for one in attending],
            "kv_bytes": sum(storages.values()),
            "blocks": int(self.cache_config.num_gpu_blocks or 0),
            "block_size": int(self.cache_config.block_size),
            "threads": torch.get_num_threads(),
            "cudagraph_mode": str(getattr(self.vllm_config.compilation_config.cudagraph_mode, "name", None)),
            "runner": type(self.model_runner).__module__,
        }

    def kvray_reset_peak(self) -> None:
        """Start a new window of the device allocator's peak."""
        import torch

        torch.cuda.reset_peak_memory_stats()

    def kvray_peak_bytes(self) -> tuple[int, int]:
        """Highest since then: allocated, and held from the driver."""
        import torch

        return int(torch.cuda.max_memory_allocated()), int(torch.cuda.max_memory_reserved())


def _tensors(caches: Any) -> Iterator[Any]:
    """The tensors in whatever a runner keeps its caches in."""
    if hasattr(caches, "untyped_storage"):
        yield caches
    elif isinstance(caches, dict):
        for one in caches.values():
            yield from _tensors(one)
    elif isinstance(caches, list | tuple):
        for one in caches:
            yield from _tensors(one)
