"""Peak memory of the measuring process on one device, and giving back what is not used."""

from __future__ import annotations

import gc

import torch

from kvray.probes.cpu import PeakRss

_MIB = 1024 * 1024


class DeviceMemory:
    """The allocator's figures on CUDA, the resident set on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._rss = PeakRss()

    def reset_peak(self) -> None:
        """Start a new window for `peak_mib` and `reserved_peak_mib`."""
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            self._rss.reset()

    def peak_mib(self) -> float | None:
        """Highest since `reset_peak`."""
        return float(torch.cuda.max_memory_allocated()) / _MIB if self._is_cuda else self._rss.read_mib()

    def reserved_peak_mib(self) -> float | None:
        """Highest that the allocator held from the driver, used or cached; `None` on a CPU."""
        return float(torch.cuda.max_memory_reserved()) / _MIB if self._is_cuda else None

    def release(self) -> None:
        """Free what only garbage holds, and give the allocator's cache back to the driver."""
        gc.collect()
        if self._is_cuda:
            torch.cuda.empty_cache()
