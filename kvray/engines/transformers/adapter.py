"""`TransformersAdapter`: what Hugging Face Transformers offers on a device, and the way into a measurement process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, CompileMode, DeviceType, DType
from kvray.config import cache_dir
from kvray.engines.base import (
    AxisValue,
    DeviceFacts,
    EngineAdapter,
    LoadedModel,
    ModelInfo,
    ModelRequest,
)
from kvray.engines.transformers import models, snippet
from kvray.engines.transformers.gguf import is_converted
from kvray.errors import ModelError
from kvray.space.constraints import Rule, SpaceFacts
from kvray.space.search_space import Axes
from kvray.workload import Cell, WorkloadProfile

BFLOAT16_CAPABILITY = (8, 0)
"""First CUDA compute capability with native bfloat16 (Ampere)."""


class TransformersAdapter(EngineAdapter):
    """The engine `transformers`."""

    name: ClassVar[str] = "transformers"
    preload: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "transformers.generation.utils",
        "transformers.models.auto.modeling_auto",
        "transformers.models.llama.modeling_llama",
        "kvray.engines.transformers.loaded",
    )

    def check_model_id(self, model_id: str) -> None:
        """See `EngineAdapter.check_model_id`."""
        models.parse_model_id(model_id)

    def describe_model(self, request: ModelRequest) -> ModelInfo:
        """See `EngineAdapter.describe_model`. A GGUF file is converted first."""
        _convert_if_gguf(request)
        return models.describe(request)

    def fetch_weights(self, request: ModelRequest) -> None:
        """See `EngineAdapter.fetch_weights`."""
        _convert_if_gguf(request)
        models.weights_path(request)

    def baseline(self, model: ModelInfo, device: DeviceFacts, *, batch_size: int) -> Candidate:
        """`from_pretrained` and `generate` with nothing set: the checkpoint's dtype, SDPA, a growing cache."""
        del device
        return Candidate(
            engine=self.name,
            cache=CacheStrategy.DYNAMIC,
            attention=AttentionBackend.SDPA,
            dtype=model.native_dtype,
            batch_size=batch_size,
        )

    def menu(self, device: DeviceFacts) -> tuple[AxisValue, ...]:
        """See `EngineAdapter.menu`."""
        return (
            *(AxisValue(axis="cache", value=cache.value) for cache in CacheStrategy),
            *(_attention_value(attention, device) for attention in AttentionBackend),
            *(_dtype_value(dtype, device) for dtype in DType),
            *(_compile_value(mode, device) for mode in CompileMode),
        )

    def axes(self, model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile, *, compile: bool) -> Axes:
        """See `EngineAdapter.axes`: all that is not on request only, and in any case the model's own dtype."""
        menu = self.menu(device)
        on_request = {(entry.axis, entry.value) for entry in menu if entry.on_request}
        available = {(entry.axis, entry.value) for entry in menu if not entry.obstacle}
        dtypes = {dtype for dtype in DType if ("dtype", dtype) in available and ("dtype", dtype) not in on_request}
        modes = tuple(mode for mode in CompileMode if ("compile", mode) in available)
        return Axes(
            caches=tuple(CacheStrategy),
            attentions=tuple(one for one in AttentionBackend if ("attention", one) not in on_request),
            dtypes=tuple(dtype for dtype in DType if dtype in dtypes | {model.native_dtype}),
            compiles=modes if compile else (CompileMode.OFF,),
            batch_sizes=profile.batch_sizes,
        )

    def process_environment(self) -> Mapping[str, str]:
        """See `EngineAdapter.process_environment`: one folder of compiled kernels per torch version, no chatter."""
        compiled = cache_dir() / "compiled" / f"torch-{version('torch')}"
        return {
            "TORCHINDUCTOR_CACHE_DIR": str(compiled / "inductor"),
            "TRITON_CACHE_DIR": str(compiled / "triton"),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "KINETO_LOG_LEVEL": "99",
        }

    def rules(self) -> Sequence[Rule]:
        """See `EngineAdapter.rules`."""
        return (Rule(name="compile-needs-static-cache", check=_compile_needs_static_cache),)

    def load(
        self, request: ModelRequest, candidate: Candidate, device: DeviceType, profile: WorkloadProfile
    ) -> LoadedModel:
        """See `EngineAdapter.load`."""
        del profile
        from kvray.engines.transformers.loaded import TransformersModel

        return TransformersModel(request, candidate, device)

    def render_snippet(self, *, model_id: str, candidate: Candidate, cell: Cell, trust_remote_code: bool) -> str:
        """See `EngineAdapter.render_snippet`."""
        return snippet.render(model_id=model_id, candidate=candidate, cell=cell, trust_remote_code=trust_remote_code)

    def memory_note(self, device: DeviceType) -> str:
        """See `EngineAdapter.memory_note`."""
        if device is DeviceType.CUDA:
            return "Peak memory is the highest that PyTorch's CUDA allocator held at once while a cell was measured."
        return (
            "Peak memory is the highest resident set of the measuring process while a cell was measured; it includes "
            "the libraries and the weights, which are the same for every candidate of a dtype."
        )


def _attention_value(attention: AttentionBackend, device: DeviceFacts) -> AxisValue:
    obstacle = on_request = None
    if device.device is DeviceType.CPU:
        if attention in (AttentionBackend.SDPA_EFFICIENT, AttentionBackend.SDPA_CUDNN):
            obstacle = "PyTorch has this kernel for CUDA only"
        if attention is AttentionBackend.SDPA_FLASH:
            on_request = "it is what sdpa runs on a CPU (records name the kernel): measured with --attention sdpa_flash"
    return AxisValue(axis="attention", value=attention.value, obstacle=obstacle, on_request=on_request)


def _dtype_value(dtype: DType, device: DeviceFacts) -> AxisValue:
    obstacle = on_request = None
    if device.device is DeviceType.CPU and dtype is DType.FLOAT16:
        on_request = "float16 is emulated on a CPU (prefill 6-10 times slower): measured with --dtype float16"
    capability = device.compute_capability
    if dtype is DType.BFLOAT16 and capability is not None and capability < BFLOAT16_CAPABILITY:
        obstacle = f"needs compute capability 8.0 (Ampere), this GPU has {capability[0]}.{capability[1]}"
    return AxisValue(axis="dtype", value=dtype.value, obstacle=obstacle, on_request=on_request)


def _compile_value(mode: CompileMode, device: DeviceFacts) -> AxisValue:
    obstacle = on_request = None
    if mode is not CompileMode.OFF:
        on_request = "added by --compile"
    if mode is CompileMode.REDUCE_OVERHEAD and device.device is DeviceType.CPU:
        obstacle = "CUDA graphs need a CUDA GPU"
    return AxisValue(axis="compile", value=mode.value, obstacle=obstacle, on_request=on_request)


def _compile_needs_static_cache(candidate: Candidate, facts: SpaceFacts) -> str | None:
    del facts
    if candidate.compile is CompileMode.OFF or candidate.cache is CacheStrategy.STATIC:
        return None
    return f"generate() compiles the decode step only with a static cache, not with {candidate.cache}"


def _convert_if_gguf(request: ModelRequest) -> None:
    """Convert in a process of its own, so that neither the driver nor a measurement holds the weights a second time."""
    source = models.parse_model_id(request.model_id)
    if source.kind is models.SourceKind.GGUF and not is_converted(source.local_path):
        _convert_apart(source.local_path)


def _convert_apart(gguf: Path) -> None:
    command = [sys.executable, "-m", "kvray.engines.transformers.gguf", str(gguf)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ModelError(lines[-1])
