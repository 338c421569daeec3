"""What the driver knows of a model and of a device before a trial runs."""

from __future__ import annotations

from dataclasses import dataclass

from kvray.candidate import AttentionBackend, AttentionChoice, DeviceType, DType
from kvray.forecast.shape import ModelShape
from kvray.record import short_model_name

UNKNOWN_REVISION = "unknown"

_PLAIN = {"F32": DType.FLOAT32, "F16": DType.FLOAT16, "BF16": DType.BFLOAT16}
"""What GGUF files call plain numbers."""
_SDPA = AttentionChoice(AttentionBackend.SDPA)


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is known of a model before its weights are touched.

    Attributes:
        model_id: what names the model wherever the trial runs: a hub id, or an absolute path.
        revision: what identifies these very weights (a commit, a file's hash); `UNKNOWN_REVISION` where
            nothing does, or where it takes reading them all: `EngineAdapter.identify_model`.
        architecture: class or family name, for people.
        loader: what of the engine's library loads the model, where there is a choice.
        max_context: positions the model holds (prompt and output together), `None` if unbounded or unknown.
        native_dtype: the dtype that the checkpoint asks for.
        random_weights: whether speed and memory are real and quality is not.
        layer_kinds: what each layer keeps of past tokens, in the engine's words; empty: unknown.
        missing_attentions: those that the engine has no code for in this architecture.
        default_attention: what the engine runs when none is asked for.
        shape: what bytes and FLOPs depend on, for the engine's `cost_model`; `None`: unknown.
        shape_unknown: why nothing can be forecast, as the end of a sentence about the model.
        packing: what the checkpoint's weights are packed with, such as GPTQ; `None`: they are plain numbers of a dtype.
        weight_bytes: of all weights as their file has them, where a dtype does not tell; `None`: it does.
        tensor_parallel: whether the engine knows how to split each of its layers over several GPUs.
        notes: what a reader of the figures must know of this model, one sentence each; shown by dry run, forecast,
            sweep, report and plan.
    """

    model_id: str
    revision: str
    architecture: str
    max_context: int | None
    native_dtype: DType
    loader: str | None = None
    random_weights: bool = False
    layer_kinds: tuple[str, ...] = ()
    missing_attentions: tuple[AttentionBackend, ...] = ()
    default_attention: AttentionChoice = _SDPA
    shape: ModelShape | None = None
    shape_unknown: str | None = None
    packing: str | None = None
    weight_bytes: int | None = None
    tensor_parallel: bool = False
    notes: tuple[str, ...] = ()

    @property
    def weights(self) -> str:
        """How the weights are stored, e.g. `GPTQ` or `bfloat16`."""
        return self.native_dtype if self.packing is None else _PLAIN.get(self.packing, self.packing)

    @property
    def name(self) -> str:
        """For titles: a path's last part, e.g. `model.gguf` or `random:llama`; a hub id as it is."""
        return short_model_name(self.model_id)


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """The device a sweep runs on, as far as the driver knows it without initialising it.

    Attributes:
        compute_capability: of the oldest visible GPU, `None` on a CPU.
        gpu_memory_mib: of the smallest visible GPU, `None` on a CPU and where it is not known.
        trial_threads: that a trial is given on this CPU; 0: as many as the engine's library takes by itself; `None`:
            not known.
    """

    device: DeviceType
    device_name: str
    gpu_count: int = 0
    compute_capability: tuple[int, int] | None = None
    gpu_memory_mib: float | None = None
    trial_threads: int | None = None
