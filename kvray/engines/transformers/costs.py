"""`TransformersCosts`: what a candidate costs in Transformers, for forecasts. Imports no torch."""

from __future__ import annotations

from typing_extensions import override

from kvray.candidate import Candidate, DeviceType
from kvray.engines.transformers import cost_memory, cost_time
from kvray.forecast.cost_model import CostModel
from kvray.forecast.hardware import Hardware
from kvray.forecast.memory import MemoryNeed
from kvray.forecast.shape import ModelShape
from kvray.workload import Cell


class TransformersCosts(CostModel):
    """The costs of a model of `shape`."""

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape

    @override
    def memory(self, candidate: Candidate, cell: Cell, device: DeviceType) -> MemoryNeed:
        return cost_memory.memory_need(self._shape, candidate, cell, device)

    @override
    def prefill_s(self, candidate: Candidate, cell: Cell, hardware: Hardware) -> float | None:
        return cost_time.prefill_s(self._worked_on(candidate, hardware), candidate, cell, hardware)

    @override
    def decode_step_s(self, candidate: Candidate, cell: Cell, hardware: Hardware) -> float | None:
        return cost_time.decode_step_s(self._worked_on(candidate, hardware), candidate, cell, hardware)

    @override
    def least_read_bytes(self, candidate: Candidate, cell: Cell) -> float:
        return cost_time.least_read_bytes(self._shape, candidate, cell)

    def _worked_on(self, candidate: Candidate, hardware: Hardware) -> ModelShape:
        """What takes the time: with tensor parallelism one GPU's part, without the exchange between the GPUs, which is
        not forecast; with whole layers on each GPU all of it, one after the other. Processes on one CPU share it."""
        is_cpu = hardware.device is DeviceType.CPU
        return self._shape if is_cpu else cost_memory.part_of(self._shape, candidate)
