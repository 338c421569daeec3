"""What candidates cost in the fake engine: as its model does, with the tile that its own axis `tile` sets."""

from __future__ import annotations

from typing_extensions import override

from kvray.candidate import Candidate, DeviceType
from kvray.forecast.cost_model import CostModel
from kvray.forecast.hardware import Hardware
from kvray.forecast.memory import ITEM_BYTES, MemoryNeed, kv_bytes, weight_bytes
from kvray.forecast.roofline import attention_flops, prompt_flops, read_weight_bytes, roofline_s, step_flops
from kvray.forecast.shape import LayerShape, ModelShape
from kvray.testing.fake_axes import tile_factor
from kvray.workload import Cell

SHAPE = ModelShape(
    total_parameters=1_000_000,
    lookup_parameters=0,
    vocab=1000,
    hidden=64,
    intermediate=256,
    heads=4,
    layers=(LayerShape(kv_heads=4, key_dim=16, value_dim=16),) * 4,
)
"""That of a `sized` model."""


class FakeCosts(CostModel):
    """The costs of a model of `shape`: a tile of activations is needed on every GPU, all else is shared by them."""

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape

    @override
    def memory(self, candidate: Candidate, cell: Cell, device: DeviceType) -> MemoryNeed:
        tile = int(dict(candidate.settings).get("tile") or 0)
        item = ITEM_BYTES[candidate.dtype]
        return MemoryNeed(
            weights=weight_bytes(self._shape, candidate.dtype),
            cache=self._cache_bytes(candidate, cell),
            transient=0,
            on_each_gpu=cell.batch_size * tile * self._shape.hidden * item,
        )

    @override
    def prefill_s(self, candidate: Candidate, cell: Cell, hardware: Hardware) -> float | None:
        attention = sum(attention_flops(self._shape, layer, cell, is_whole=True) for layer in self._shape.layers)
        tokens = cell.batch_size * cell.context_tokens
        return self._roofline_s(candidate, prompt_flops(self._shape, cell) + attention, tokens, hardware)

    @override
    def decode_step_s(self, candidate: Candidate, cell: Cell, hardware: Hardware) -> float | None:
        return self._roofline_s(candidate, step_flops(self._shape, cell), cell.batch_size, hardware)

    @override
    def least_read_bytes(self, candidate: Candidate, cell: Cell) -> float:
        weights = read_weight_bytes(self._shape, candidate.dtype, tokens=cell.batch_size)
        return weights + self._cache_bytes(candidate, cell)

    def _cache_bytes(self, candidate: Candidate, cell: Cell) -> int:
        rows, tokens = cell.batch_size, cell.context_tokens + cell.output_tokens
        item = ITEM_BYTES[candidate.dtype]
        return sum(kv_bytes(layer, rows=rows, tokens=tokens, item_bytes=item) for layer in self._shape.layers)

    def _roofline_s(self, candidate: Candidate, flops: float, tokens: int, hardware: Hardware) -> float | None:
        seconds = roofline_s(
            flops=flops,
            read_bytes=read_weight_bytes(self._shape, candidate.dtype, tokens=tokens),
            dtype=candidate.dtype,
            hardware=hardware,
            gpus=candidate.parallelism,
        )
        return None if seconds is None else seconds * tile_factor(candidate)
