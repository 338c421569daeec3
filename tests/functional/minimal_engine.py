"""The least that an engine of another package must bring: everything that the contract makes optional is left out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from kvray.candidate import (
    AttentionBackend,
    AttentionChoice,
    CacheChoice,
    CacheStrategy,
    Candidate,
    CompileMode,
    DeviceType,
    DType,
)
from kvray.engines.base import (
    DeviceFacts,
    EngineAdapter,
    Generation,
    LoadedModel,
    ModelInfo,
    ModelRequest,
    Observed,
    UnsupportedError,
)
from kvray.errors import ModelError
from kvray.space.axis import Axis, AxisValue
from kvray.space.menu import shared_axis
from kvray.space.search_space import SpaceBlock
from kvray.workload import Cell, WorkloadProfile

TOKENS_SHORT = 0
"""So many tokens less than asked for are generated; a test sets it to see whether the kit notices."""


class MinimalModel(LoadedModel):
    def prepare(self, cell: Cell) -> None:
        self.cell = cell

    def generate(self, output_tokens: int) -> Generation:
        started, stamps = time.perf_counter(), []
        for _ in range(output_tokens - TOKENS_SHORT):
            time.sleep(0.001)
            stamps.append(time.perf_counter())
        tokens = (tuple(range(len(stamps))),) * self.cell.batch_size
        return Generation(started_s=started, token_s=tuple(stamps), tokens=tokens)

    def observe(self, output_tokens: int = 2) -> Observed:
        return Observed()

    def kv_cache_bytes(self) -> int | None:
        return None

    def reset_peak_memory(self) -> None: ...

    def peak_memory_mib(self) -> float | None:
        return None

    def count_tokens(self, text: str) -> int:
        return len(text)

    def complete(self, text: str, max_new_tokens: int) -> str:
        return text

    def close(self) -> None: ...


class MinimalAdapter(EngineAdapter):
    name: ClassVar[str] = "minimal"

    def describe_model(self, request: ModelRequest) -> ModelInfo:
        if request.model_id != "small":
            raise ModelError(f"There is no model {request.model_id!r}.")
        return ModelInfo(
            model_id="small", revision="1", architecture="Minimal", max_context=512, native_dtype=DType.FLOAT32
        )

    def fetch_weights(self, request: ModelRequest) -> None:
        self.describe_model(request)

    def baseline(self, model: ModelInfo, device: DeviceFacts, *, batch_size: int) -> Candidate:
        return Candidate(
            engine=self.name,
            cache=CacheStrategy.DYNAMIC,
            attention=AttentionBackend.SDPA,
            dtype=DType.FLOAT32,
            batch_size=batch_size,
        )

    def axes(self, device: DeviceFacts) -> tuple[Axis, ...]:
        only = {
            "cache": CacheStrategy.DYNAMIC,
            "attention": AttentionBackend.SDPA,
            "dtype": DType.FLOAT32,
            "compile": CompileMode.OFF,
        }
        return tuple(shared_axis(name, [AxisValue(value=value.value)]) for name, value in only.items())

    def default_space(self, model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
        return (
            SpaceBlock(
                caches=(CacheChoice(CacheStrategy.DYNAMIC),),
                attentions=(AttentionChoice(AttentionBackend.SDPA),),
                dtypes=(DType.FLOAT32,),
                batch_sizes=profile.batch_sizes,
            ),
        )

    def full_space(self, model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
        return self.default_space(model, device, profile)

    def load(
        self, request: ModelRequest, candidate: Candidate, device: DeviceType, profile: WorkloadProfile
    ) -> LoadedModel:
        self.describe_model(request)
        if candidate.settings:
            raise UnsupportedError(f"This engine has no axis {', '.join(dict(candidate.settings))}.")
        return MinimalModel()

    def render_snippet(
        self,
        request: ModelRequest,
        *,
        loader: str | None,
        candidate: Candidate,
        device: DeviceType,
        cells: Sequence[Cell],
    ) -> str:
        return f"print({request.model_id!r})\n"

    def memory_note(self, device: DeviceType) -> str:
        return "Memory is not told."
