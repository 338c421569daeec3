"""`TuneConfig`: everything one sweep is told, validated in one place; unknown fields are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kvray.candidate import AttentionBackend, CacheStrategy, DeviceType, DType
from kvray.errors import InvalidValueError, describe_problems
from kvray.workload import WorkloadProfile, get_profile


class TuneConfig(BaseModel):
    """What to tune, on what, and how.

    Attributes:
        model_id: a hub id, a local folder, a `.gguf` file, or `random:<folder or config.json>`.
        profile: the workload, or the name of a built-in one.
        device: where to run; `None` takes CUDA where the machine has it, else the CPU.
        output_dir: results folder: a local path, or a `pyarrow.fs` URI such as `s3://…`.
        caches, attentions, dtypes: narrow an axis of the space; empty means all that the device supports.
        compile: whether `torch.compile` candidates are added.
        address: address of a running Ray cluster; `None` starts a private local Ray.
        slots: trials measured at the same time; `None` means one per GPU, or one on a CPU.
        timeout_s: seconds that any one phase of a trial (load, warm-up, measuring a cell) may take before it is killed.
        resume: id of an earlier run in `output_dir`, whose recorded trials are not measured again.
        seed: of the bootstrap.

    Raises:
        InvalidValueError: a field is unknown or has a value that is not allowed; all problems are named at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    model_id: Annotated[str, Field(min_length=1)]
    profile: WorkloadProfile
    device: DeviceType | None = None
    engine: str = "transformers"
    output_dir: Annotated[str, Field(min_length=1)] = "kvray_results"
    caches: tuple[CacheStrategy, ...] = ()
    attentions: tuple[AttentionBackend, ...] = ()
    dtypes: tuple[DType, ...] = ()
    compile: bool = False
    trust_remote_code: bool = False
    address: str | None = None
    slots: Annotated[int, Field(ge=1)] | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    resume: str | None = None
    seed: int = 0

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InvalidValueError(f"The configuration is not valid: {describe_problems(error)}.") from error

    @field_validator("output_dir", mode="before")
    @classmethod
    def _path_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, Path) else value

    @field_validator("profile", mode="before")
    @classmethod
    def _profile_by_name(cls, value: object) -> object:
        return get_profile(value) if isinstance(value, str) else value


def cache_dir() -> Path:
    """Where kvray keeps what it can make again (converted weights, compiled kernels): `$KVRAY_CACHE`, else
    `kvray` under `$XDG_CACHE_HOME`, else `~/.cache/kvray`. Not created here."""
    if own := os.environ.get("KVRAY_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvray"
