"""`VllmAdapter`: what vLLM offers on a device, and the way into a measurement process. Imports no vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import ClassVar

from typing_extensions import override

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, CompileMode, DeviceType
from kvray.config import cache_dir
from kvray.engines.base import (
    UNKNOWN_REVISION,
    DeviceFacts,
    EngineAdapter,
    LoadedModel,
    ModelInfo,
    ModelRequest,
)
from kvray.engines.hugging_face.conversion import convert_if_gguf
from kvray.engines.hugging_face.gguf import check_gguf
from kvray.engines.hugging_face.model_folder import config_path, revision, weights_path
from kvray.engines.vllm import axes, description, device_rates, rules, serving, spaces
from kvray.engines.vllm.costs import VllmCosts
from kvray.engines.vllm.versions import check_version
from kvray.errors import EngineError
from kvray.extras import Extra
from kvray.forecast.cost_model import CostModel
from kvray.forecast.hardware import Hardware
from kvray.models.checkpoint import check_files
from kvray.models.revision import check_unchanged
from kvray.models.source import SourceKind, parse_model_id
from kvray.space.axis import Axis
from kvray.space.constraints import Constraint
from kvray.space.search_space import SpaceBlock
from kvray.workload import Cell, WorkloadProfile


class VllmAdapter(EngineAdapter):
    """The engine `vllm`."""

    name: ClassVar[str] = "vllm"
    libraries: ClassVar[tuple[str, ...]] = ("vllm", "torch", "transformers")
    preload: ClassVar[tuple[str, ...]] = ("torch", "vllm", "vllm.v1.engine.llm_engine", "kvray.engines.vllm.loaded")
    is_parallel: ClassVar[bool] = True
    measures_hardware: ClassVar[bool] = True
    extra: ClassVar[Extra | None] = Extra.VLLM

    @override
    def check_installed(self) -> None:
        """A version that was never tried is refused too."""
        if find_spec("vllm") is None:
            raise EngineError(
                "The engine vllm needs vllm, which is not installed.",
                hint="Name a Python that has it with --engine-python vllm=PATH, or install it here: "
                f"{Extra.VLLM.install_command}",
            )
        check_version()

    @override
    def check_model(self, request: ModelRequest) -> None:
        source = parse_model_id(request.model_id)
        if source.kind is SourceKind.FOLDER:
            check_files(request, source.local_path)
        elif source.kind is SourceKind.GGUF:
            check_gguf(source.local_path)

    @override
    def describe_model(self, request: ModelRequest) -> ModelInfo:
        return description.describe(request)

    @override
    def measure_hardware(self, device: DeviceType, threads: int | None) -> Hardware | None:
        return device_rates.measure_apart(device, threads, self.process_environment())

    @override
    def cost_model(self, model: ModelInfo) -> CostModel | None:
        return None if model.shape is None else VllmCosts(model.shape, model.layer_kinds)

    @override
    def identify_model(self, request: ModelRequest, info: ModelInfo) -> ModelInfo:
        """A folder's weights are hashed, and again only when they change."""
        return info if info.revision != UNKNOWN_REVISION else replace(info, revision=revision(request))

    @override
    def fetch_weights(self, request: ModelRequest) -> None:
        convert_if_gguf(request)
        check_unchanged(request, weights_path(request))

    def baseline(self, model: ModelInfo, device: DeviceFacts, *, batch_size: int) -> Candidate:
        """`vllm serve` with nothing set but a pool of blocks for this workload, in place of a share of all memory. The
        prefix cache is on, and every prompt is new to it."""
        return Candidate(
            engine=self.name,
            cache=CacheStrategy.PAGED,
            attention=AttentionBackend.FLASH,
            dtype=spaces.default_dtype(model, device),
            compile=CompileMode.DEFAULT,
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
    def process_environment(self) -> Mapping[str, str]:
        """One place for what vLLM and its compiler keep, no reports to its makers, and no chatter."""
        kept = cache_dir().absolute() / "vllm"
        return {
            "VLLM_CACHE_ROOT": str(kept),
            "TORCHINDUCTOR_CACHE_DIR": str(kept / "inductor"),
            "VLLM_NO_USAGE_STATS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TQDM_DISABLE": "1",
        }

    @override
    def rules(self, request: ModelRequest, model: ModelInfo, profile: WorkloadProfile) -> Sequence[Constraint]:
        return rules.rules(description.read_config(config_path(request)), profile)

    @override
    def load(
        self, request: ModelRequest, candidate: Candidate, device: DeviceType, profile: WorkloadProfile
    ) -> LoadedModel:
        from kvray.engines.vllm.loaded import VllmModel

        return VllmModel(request, candidate, device, profile.cells(candidate.batch_size, rung=2))

    def render_snippet(
        self,
        request: ModelRequest,
        *,
        loader: str | None,
        candidate: Candidate,
        device: DeviceType,
        cells: Sequence[Cell],
    ) -> str:
        """A program with `load()` and `generate(…)`."""
        del loader
        return serving.render(request, candidate, device, cells)

    @override
    def serving_command(
        self, request: ModelRequest, *, candidate: Candidate, device: DeviceType, cells: Sequence[Cell]
    ) -> Sequence[str]:
        return serving.serving_command(request, candidate, device, cells)

    @override
    def measured_note(self, device: DeviceType) -> str:
        threads = "" if device is DeviceType.CUDA else " By itself vLLM computes on all physical cores but one."
        return (
            "vLLM is measured through its own step loop, in which `vllm.LLM` submits prompts to the engine's process, "
            "with the defaults of `vllm serve`. A token's time stamp is when its id is back in the process that asked. "
            f"The prefix cache is on, and every prompt is new to it.{threads}"
        )

    @override
    def memory_note(self, device: DeviceType) -> str:
        if device is DeviceType.CUDA:
            return (
                "Peak memory of vLLM is the highest that its workers' CUDA allocators held while a cell was measured, "
                "with a pool of blocks for the longest cell in place of a share of the GPU."
            )
        return (
            "Peak memory of vLLM is the sum of the highest resident sets of its processes (ours, the engine's core and "
            "its workers), each of which has the libraries; of its pool of blocks only what was written counts."
        )
