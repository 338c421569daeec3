"""`TransformersAdapter`: what Hugging Face Transformers offers on a device, and the way into a measurement process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from typing_extensions import override

from kvray.candidate import CacheChoice, CacheStrategy, Candidate, DeviceType
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
from kvray.engines.hugging_face.model_folder import config_path, revision, weights_path
from kvray.engines.transformers import (
    description,
    device_rates,
    inspection,
    menu,
    outline,
    rules,
    snippet,
    spaces,
)
from kvray.engines.transformers.arguments import MOST_CPU_RANKS, Split, split_of
from kvray.engines.transformers.costs import TransformersCosts
from kvray.engines.transformers.packed import told_of_packing
from kvray.environment import changed_environment
from kvray.extras import Extra
from kvray.files.file_systems import has_locks
from kvray.forecast.cost_model import CostModel
from kvray.forecast.hardware import Hardware
from kvray.models.revision import check_unchanged
from kvray.space.axis import Axis
from kvray.space.constraints import Constraint
from kvray.space.search_space import SpaceBlock
from kvray.workload import Cell, WorkloadProfile

_INDUCTOR_CACHE = "TORCHINDUCTOR_CACHE_DIR"


class TransformersAdapter(EngineAdapter):
    """The engine `transformers`."""

    name: ClassVar[str] = "transformers"
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    preload: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "transformers.generation.utils",
        "transformers.models.auto.modeling_auto",
        "transformers.models.llama.modeling_llama",
        "kvray.engines.transformers.loaded",
    )
    snippet_runner: ClassVar[str | None] = "kvray.engines.transformers.snippet_run"
    measures_hardware: ClassVar[bool] = True
    is_parallel: ClassVar[bool] = True
    cpu_processes: ClassVar[int] = MOST_CPU_RANKS
    extra: ClassVar[Extra | None] = Extra.TRANSFORMERS

    @override
    def check_model(self, request: ModelRequest) -> None:
        inspection.inspect_files(request)

    @override
    def describe_model(self, request: ModelRequest) -> ModelInfo:
        """A GGUF file is converted first. Torch is imported only for a model that has to be tried."""
        convert_if_gguf(request)
        if "torch" not in sys.modules and (outlined := outline.outline_model(request)) is not None:
            return outlined
        # torch notes in the environment where it would keep what it compiles; trials, which inherit it, have a place.
        with changed_environment({_INDUCTOR_CACHE: os.environ.get(_INDUCTOR_CACHE)}):
            return description.describe(request)

    @override
    def measure_hardware(self, device: DeviceType, threads: int | None) -> Hardware | None:
        return device_rates.measure_apart(device, threads, self.process_environment())

    @override
    def cost_model(self, model: ModelInfo) -> CostModel | None:
        return None if model.shape is None else TransformersCosts(model.shape)

    @override
    def adapt_to_device(self, request: ModelRequest, info: ModelInfo, device: DeviceFacts | None) -> ModelInfo:
        """Says what becomes of packed weights."""
        return info if info.packing is None else told_of_packing(request, config_path(request), info, device)

    @override
    def identify_model(self, request: ModelRequest, info: ModelInfo) -> ModelInfo:
        """A folder's weights are hashed, and again only when they change."""
        return info if info.revision != UNKNOWN_REVISION else replace(info, revision=revision(request))

    @override
    def fetch_weights(self, request: ModelRequest) -> None:
        convert_if_gguf(request)
        check_unchanged(request, weights_path(request))

    @override
    def check_weights(self, request: ModelRequest, *, quick: bool = False) -> None:
        inspection.inspect_weights(request, quick=quick)

    def baseline(self, model: ModelInfo, device: DeviceFacts, *, batch_size: int) -> Candidate:
        """`from_pretrained` and `generate` with nothing set: the checkpoint's dtype, the attention that its config
        names or its class picks, a growing cache. Weights that one GPU does not hold are spread over the fewest that
        do, with `device_map="auto"`."""
        attention = spaces.default_attention(model, device)
        gpus = spaces.fewest_gpus(model, device, [Cell(1, 1, batch_size)]) or 1
        alone = Candidate(
            engine=self.name,
            cache=CacheStrategy.DYNAMIC,
            attention=attention.backend,
            hub_kernel=attention.hub_kernel,
            dtype=model.native_dtype,
            batch_size=batch_size,
        )
        return spaces.spread_by_layers(alone, gpus)

    @override
    def axes(self, device: DeviceFacts) -> tuple[Axis, ...]:
        return menu.axes(device)

    @override
    def default_space(self, model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
        return spaces.default_space(model, device, profile)

    @override
    def full_space(self, model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
        return spaces.full_space(model, device, profile)

    @override
    def resolve_cache(
        self, choice: CacheChoice, device: DeviceFacts, profile: WorkloadProfile
    ) -> tuple[CacheChoice, ...]:
        return spaces.resolve_cache(choice, device, profile)

    @override
    def process_environment(self) -> Mapping[str, str]:
        """One folder of compiled kernels per torch version, and no chatter."""
        return {
            **_compiler_caches(cache_dir().absolute() / "compiled" / f"torch-{version('torch')}"),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "KINETO_LOG_LEVEL": "99",
        }

    @override
    def build_locks(self) -> Sequence[Path]:
        """The locks of optimum-quanto, which builds inside its own package."""
        optimum = find_spec("optimum")
        homes = optimum.submodule_search_locations if optimum is not None else None
        return [lock for home in homes or () for lock in Path(home).glob("quanto/library/extensions/*/build/lock")]

    @override
    def rules(self, request: ModelRequest, model: ModelInfo, profile: WorkloadProfile) -> Sequence[Constraint]:
        return rules.rules(request, model, profile)

    @override
    def load(
        self, request: ModelRequest, candidate: Candidate, device: DeviceType, profile: WorkloadProfile
    ) -> LoadedModel:
        from kvray.engines.transformers.loaded import TransformersModel
        from kvray.engines.transformers.tensor_parallel import TensorParallelModel

        model = TensorParallelModel if split_of(candidate) is Split.TP else TransformersModel
        return model(request, candidate, device, profile.cells(candidate.batch_size, rung=2))

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
        return snippet.render(request, loader=loader, candidate=candidate, device=device, cells=cells)

    @override
    def measured_note(self, device: DeviceType) -> str | None:
        return "By generate() in the measuring process; a token counts when its id is on the host."

    @override
    def memory_note(self, device: DeviceType) -> str:
        if device is DeviceType.CUDA:
            return (
                "Peak memory is the highest that PyTorch's CUDA allocator held at once while a cell was measured; over "
                "several GPUs the peaks of all are added up."
            )
        return (
            "Peak memory is the highest resident set of the measuring process while a cell was measured; it includes "
            "the libraries and the weights, which are the same for every candidate of a dtype. Over several processes "
            "the peaks of all are added up, and each has the libraries."
        )


def _compiler_caches(folder: Path) -> Mapping[str, str]:
    """None where `folder` cannot be written, or has no locks: torch makes its own at import, and then takes a temporary
    folder."""
    caches = {_INDUCTOR_CACHE: folder / "inductor", "TRITON_CACHE_DIR": folder / "triton"}
    try:
        for cache in caches.values():
            cache.mkdir(parents=True, exist_ok=True)
        usable = has_locks(folder)
    except OSError:
        usable = False
    return {} if not usable else {name: str(cache) for name, cache in caches.items()}
