"""Peak memory of the measuring process on its devices, and giving back what is not used."""

from __future__ import annotations

import gc

import torch

from kvray.probes.cpu import PeakRss

_MIB = 1024 * 1024


class DeviceMemory:
    """The allocator's figures on CUDA, the resident set on a CPU.

    Args:
        gpus: that this process uses, the first ones; what each held at its own highest is added up. `None`: the current
            one alone.
    """

    def __init__(self, device: torch.device, *, gpus: int | None = None) -> None:
        self._is_cuda = device.type == "cuda"
        self._gpus = (None,) if gpus is None else tuple(range(gpus))
        self._rss = PeakRss()

    def reset_peak(self) -> None:
        """Start a new window for `peak_mib` and `reserved_peak_mib`."""
        if not self._is_cuda:
            self._rss.reset()
            return
        for gpu in self._gpus:
            torch.cuda.reset_peak_memory_stats(gpu)

    def peak_mib(self) -> float | None:
        """Highest since `reset_peak`."""
        if not self._is_cuda:
            return self._rss.read_mib()
        return sum(float(torch.cuda.max_memory_allocated(gpu)) for gpu in self._gpus) / _MIB

    def reserved_peak_mib(self) -> float | None:
        """Highest that the allocator held from the driver, used or cached; `None` on a CPU."""
        if not self._is_cuda:
            return None
        return sum(float(torch.cuda.max_memory_reserved(gpu)) for gpu in self._gpus) / _MIB

    def release(self) -> None:
        """Free what only garbage holds, and give the allocator's cache back to the driver."""
        gc.collect()
        if self._is_cuda:
            torch.cuda.empty_cache()
