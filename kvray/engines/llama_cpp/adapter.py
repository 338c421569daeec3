"""`LlamaCppAdapter`: what llama.cpp offers on a device, and the way into a measurement process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from typing_extensions import override

from kvray.candidate import CacheStrategy, Candidate, DeviceType
from kvray.engines.base import (
    UNKNOWN_REVISION,
    DeviceFacts,
    EngineAdapter,
    LoadedModel,
    ModelInfo,
    ModelRequest,
)
from kvray.engines.llama_cpp import axes, description, device_rates, model_file, rules, serving, snippet, spaces
from kvray.engines.llama_cpp.amx_build import check_tiles
from kvray.engines.llama_cpp.build import gpu_build_command, installed_build
from kvray.engines.llama_cpp.costs import LlamaCppCosts
from kvray.engines.llama_cpp.portable import build_note
from kvray.engines.llama_cpp.sizes import NativeSizes
from kvray.engines.llama_cpp.threads import default_threads
from kvray.errors import ModelError
from kvray.extras import Extra
from kvray.forecast.cost_model import CostModel
from kvray.forecast.hardware import Hardware
from kvray.models.hashes import file_sha256
from kvray.models.revision import check_unchanged
from kvray.space.axis import Axis, with_settings
from kvray.space.constraints import Constraint
from kvray.space.search_space import SpaceBlock
from kvray.workload import Cell, WorkloadProfile


class LlamaCppAdapter(EngineAdapter):
    """The engine `llama_cpp`."""

    name: ClassVar[str] = "llama_cpp"
    libraries: ClassVar[tuple[str, ...]] = ("llama-cpp-python",)
    preload: ClassVar[tuple[str, ...]] = ("llama_cpp.llama_cpp", "kvray.engines.llama_cpp.loaded")
    snippet_runner: ClassVar[str | None] = "kvray.engines.llama_cpp.snippet_run"
    measures_hardware: ClassVar[bool] = True
    extra: ClassVar[Extra | None] = Extra.LLAMA_CPP

    @override
    def check_installed(self) -> None:
        super().check_installed()
        check_tiles()

    @override
    def check_model(self, request: ModelRequest) -> None:
        model_file.read_model(request)

    @override
    def describe_model(self, request: ModelRequest) -> ModelInfo:
        return description.describe(request)

    @override
    def measure_hardware(self, device: DeviceType, threads: int | None) -> Hardware | None:
        if device is not DeviceType.CPU:
            return None
        return device_rates.measure_apart(threads or default_threads(), self.process_environment())

    @override
    def process_environment(self) -> Mapping[str, str]:
        """Where an assertion of the library fails, its own sentence is enough: no debugger is called."""
        return {"GGML_NO_BACKTRACE": "1"}

    @override
    def adapt_to_device(self, request: ModelRequest, info: ModelInfo, device: DeviceFacts | None) -> ModelInfo:
        """Says whether the library was built for other CPUs than this one. One for CPUs alone would compute there,
        whatever device was asked for, so it is refused on a GPU."""
        build = installed_build()
        if device is not None and device.device is DeviceType.CUDA and build is not None and not build.has_gpu:
            raise ModelError(
                "llama.cpp cannot use this GPU: llama-cpp-python was built for the CPU alone.",
                hint=f"Measure with --device cpu, or build it for CUDA: {gpu_build_command()}",
            )
        note = build_note() if device is not None and device.device is DeviceType.CPU else None
        return info if note is None else replace(info, notes=(*info.notes, note))

    @override
    def cost_model(self, model: ModelInfo) -> CostModel | None:
        if model.shape is None or model.weight_bytes is None:
            return None
        return LlamaCppCosts(
            model.shape,
            weight_bytes=model.weight_bytes,
            threads=default_threads(),
            native=NativeSizes.of(model.model_id),
        )

    @override
    def identify_model(self, request: ModelRequest, info: ModelInfo) -> ModelInfo:
        """The file is hashed, and again only when it changes."""
        if info.revision != UNKNOWN_REVISION:
            return info
        return replace(info, revision=f"sha256:{file_sha256(model_file.gguf_path(request))}")

    @override
    def fetch_weights(self, request: ModelRequest) -> None:
        """They are on this machine; only their version is checked."""
        check_unchanged(request, model_file.gguf_path(request).parent)

    @override
    def check_weights(self, request: ModelRequest, *, quick: bool = False) -> None:
        model_file.read_model(request)

    def baseline(self, model: ModelInfo, device: DeviceFacts, *, batch_size: int) -> Candidate:
        """`llama-server` with nothing set but how many sequences there are."""
        del device
        return Candidate(
            engine=self.name,
            cache=CacheStrategy.STATIC,
            attention=model.default_attention.backend,
            dtype=model.native_dtype,
            batch_size=batch_size,
        )

    @override
    def axes(self, device: DeviceFacts) -> tuple[Axis, ...]:
        return axes.axes(device)

    @override
    def default_space(self, model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
        return spaces.default_space(model, device, profile)

    @override
    def full_space(self, model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
        return spaces.full_space(model, device, profile)

    @override
    def rules(self, request: ModelRequest, model: ModelInfo, profile: WorkloadProfile) -> Sequence[Constraint]:
        return rules.rules(model)

    @override
    def load(
        self, request: ModelRequest, candidate: Candidate, device: DeviceType, profile: WorkloadProfile
    ) -> LoadedModel:
        from kvray.engines.llama_cpp.loaded import load_model

        return load_model(request, candidate, device, profile)

    @override
    def with_measured_threads(self, candidate: Candidate, threads: int) -> Candidate:
        return candidate if candidate.setting("threads") else with_settings(candidate, {"threads": threads})

    def render_snippet(
        self,
        request: ModelRequest,
        *,
        loader: str | None,
        candidate: Candidate,
        device: DeviceType,
        cells: Sequence[Cell],
    ) -> str:
        """A program with `load()` and `generate(…)`, see `snippet.render`."""
        del loader
        return snippet.render(request.model_id, candidate, device, cells)

    @override
    def serving_command(
        self, request: ModelRequest, *, candidate: Candidate, device: DeviceType, cells: Sequence[Cell]
    ) -> Sequence[str] | None:
        return serving.command(request.model_id, candidate, device, cells)

    @override
    def measured_note(self, device: DeviceType) -> str | None:
        return (
            "By llama_decode in the measuring process, with nothing kept of earlier prompts; a token counts when it is "
            "chosen from logits on the host."
        )

    @override
    def memory_note(self, device: DeviceType) -> str:
        if device is DeviceType.CUDA:
            return "Peak memory of llama.cpp is what its buffers take of the GPUs, all of it before it computes."
        return (
            "Peak memory of llama.cpp is the highest resident set of the measuring process while a cell was measured; "
            "weights that are rearranged for the CPU are in it twice, as a copy and as pages of the mapped file, which "
            "the system may drop when memory is short."
        )
