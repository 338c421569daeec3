"""How fast torch copies and multiplies on a device, for the engines that compute with it. Each rate is measured several
times over and the fastest counts, because whatever else runs only slows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kvray.candidate import DeviceType, DType

_MIB = 2**20
_SHARE_S = 0.15
"""Seconds for each rate, in which it is measured several times over."""
_LEAST_CALLS = 3
_COPIED_BYTES = {DeviceType.CPU: 256 * _MIB, DeviceType.CUDA: 1024 * _MIB}
_STREAMED_BYTES = {DeviceType.CPU: 256 * _MIB, DeviceType.CUDA: 1024 * _MIB}
"""Far beyond any cache, as a model's weights are."""
_STREAMED_WIDTH = 4096
_SQUARE = {DeviceType.CPU: 1024, DeviceType.CUDA: 8192}


def copy_rate(device: Any, kind: DeviceType) -> float:
    """Bytes read and written per second from device memory to device memory."""
    import torch

    source = torch.zeros(_COPIED_BYTES[kind], dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source), device)


def to_device_rate(device: Any) -> float:
    """Bytes per second from pageable host memory, as an offloaded cache lies in."""
    import torch

    source = torch.zeros(256 * _MIB, dtype=torch.uint8)
    target = torch.ones(source.numel(), dtype=torch.uint8, device=device)
    return source.numel() / seconds(lambda: target.copy_(source), device)


def matmul_rate(device: Any, kind: DeviceType, dtype: DType) -> float:
    """Floating-point operations per second with large square matrices."""
    import torch

    size = _SQUARE[kind]
    left = torch.ones(size, size, dtype=getattr(torch, dtype.value), device=device)
    right = torch.ones_like(left)
    return 2 * size**3 / seconds(lambda: torch.nn.functional.linear(left, right), device)


def stream_rate(device: Any, kind: DeviceType, dtype: DType) -> float:
    """Bytes of a matrix that no cache holds read per second, while it is multiplied with one row."""
    import torch

    torch_dtype = getattr(torch, dtype.value)
    rows = _STREAMED_BYTES[kind] // (_STREAMED_WIDTH * torch_dtype.itemsize)
    matrix = torch.ones(rows, _STREAMED_WIDTH, dtype=torch_dtype, device=device)
    row = torch.ones(1, _STREAMED_WIDTH, dtype=torch_dtype, device=device)
    return matrix.numel() * matrix.element_size() / seconds(lambda: torch.nn.functional.linear(row, matrix), device)


def seconds(work: Callable[[], object], device: Any) -> float:
    """Seconds of one call: the fastest of several after a warm-up, because whatever else runs here only adds."""
    import torch

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    work()
    finish()
    spent: list[float] = []
    while len(spent) < _LEAST_CALLS or sum(spent) < _SHARE_S:
        started = time.perf_counter()
        work()
        finish()
        spent.append(time.perf_counter() - started)
    return min(spent)
