"""Weights that are the same bits on every machine and with every version of every library.

They come from the raw stream of a bit generator, which numpy promises to keep. The distributions that numpy makes of it
are not promised, so values are made here, by operations that round alike everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]
_DRAWN_BITS = 24
"""As many as the significand of a float32 has, so that every draw is exact."""
_NORM_STEPS = 256
"""Scales of norms are whole multiples of 1/256, so that adding 1 to them, as some formats do, is exact too."""


class Tensor(NamedTuple):
    """A tensor to fill.

    Attributes:
        spread: values lie evenly between `-spread` and `spread`, around `centre`.
        is_norm: whether it is the scale of a norm, see `_NORM_STEPS`.
    """

    shape: tuple[int, ...]
    spread: float
    centre: float = 0.0
    is_norm: bool = False


def fill(tensors: Mapping[str, Tensor], seed: int) -> Weights:
    """All `tensors`, one after the other, from one stream."""
    stream = np.random.PCG64(seed)
    return {name: _values(stream, tensor) for name, tensor in tensors.items()}


def digest_of(weights: Mapping[str, NDArray[np.float32]]) -> str:
    """SHA-256 over names, shapes and little-endian bytes."""
    whole = hashlib.sha256()
    for name in sorted(weights):
        values = weights[name]
        whole.update(f"{name}{values.shape}".encode())
        whole.update(values.astype("<f4").tobytes())
    return whole.hexdigest()


def _values(stream: np.random.PCG64, tensor: Tensor) -> NDArray[np.float32]:
    raw = stream.random_raw(int(np.prod(tensor.shape))) >> np.uint64(64 - _DRAWN_BITS)
    half = 1 << (_DRAWN_BITS - 1)
    drawn = (raw.astype(np.int64) - half).astype(np.float64) / half * tensor.spread + tensor.centre
    if tensor.is_norm:
        drawn = np.round(drawn * _NORM_STEPS) / _NORM_STEPS
    values: NDArray[np.float32] = drawn.astype(np.float32).reshape(tensor.shape)
    return values
