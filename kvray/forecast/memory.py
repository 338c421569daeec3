"""`MemoryNeed`, and the bytes that are the same in every engine: weights, and keys and values as they are."""

from __future__ import annotations

from dataclasses import dataclass

from kvray.candidate import DType
from kvray.forecast.shape import LayerShape, ModelShape

MIB = 2**20
ITEM_BYTES = {DType.FLOAT32: 4, DType.FLOAT16: 2, DType.BFLOAT16: 2}


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes on the device at the peak of a cell, by what they are for. A candidate over several GPUs splits the first
    three evenly among them.

    Attributes:
        weights, cache: held all the time.
        transient: activations, logits and copies, alive at the worst moment only.
        on_each_gpu: what every GPU of the candidate needs for itself beside its share.
        droppable: pages of mapped files that are in a resident set until memory is short: nothing fails for want of
            room for them.
    """

    weights: int
    cache: int
    transient: int
    on_each_gpu: int = 0
    droppable: int = 0

    @property
    def held(self) -> int:
        """Bytes of the tensors that model and cache hold."""
        return self.weights + self.cache

    @property
    def peak(self) -> int:
        """All of it on one GPU, or on a CPU."""
        return self.peak_over(1)

    def peak_over(self, gpus: int) -> int:
        """All of it on `gpus` together."""
        return self.held + self.transient + gpus * self.on_each_gpu + self.droppable


def weight_bytes(shape: ModelShape, dtype: DType) -> int:
    """Bytes of all weights, if they are plain numbers of `dtype`."""
    return shape.total_parameters * ITEM_BYTES[dtype]


def kv_bytes(layer: LayerShape, *, rows: int, tokens: int, item_bytes: int) -> int:
    """Bytes of the keys and values of `tokens` held tokens of each of `rows` sequences, stored as they are."""
    return rows * layer.kv_elements * tokens * item_bytes
