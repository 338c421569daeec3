"""`TuneConfig`: everything one sweep is told, validated in one place; unknown fields are refused."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kvray.candidate import (
    AttentionChoice,
    CacheChoice,
    Choice,
    CompileMode,
    DeviceType,
    DType,
    ParallelChoice,
    ParamValue,
)
from kvray.errors import InvalidValueError, describe_problems, did_you_mean
from kvray.files.file_systems import has_locks
from kvray.record import TrialStatus
from kvray.workload import WorkloadProfile, get_profile


class SearchStrategy(Choice):
    """How the space is searched."""

    MODEL = "model"
    """A statistical model of the axes decides what is worth a process; what it skips is listed with its prediction."""
    GRID = "grid"
    """Every candidate is measured completely."""
    ASHA = "asha"
    """Every candidate is launched; successive halving stops the poor ones early."""
    OPTUNA = "optuna"
    """Optuna's sampler proposes; for spaces too large to list, together with `max_trials` or `budget_s`."""


DEFAULT_SPACE = "default"
FULL_SPACE = "full"
DISTURBED = "disturbed"
"""What `--retry` calls candidates whose figures rest on disturbed runs alone, beside the names of failures."""
CONFIRM_ROUNDS = 3
_logger = logging.getLogger("kvray.config")


class TuneConfig(BaseModel):
    """What to tune, on what, and how.

    Attributes:
        model_id: a hub id, a local folder, a `.gguf` file, or `random:<folder or config.json>`.
        models_for: by engine, a file or id of the same model that this engine takes in place of `model_id`.
        profile: the workload, or the name of a built-in one.
        device: where to run; `None` takes CUDA where the machine has it, else the CPU.
        engine: name of the engine, or of several with commas between them; the first one's default is the baseline.
        engine_pythons: by engine, the path of the Python of another environment in which its trials run. Without one
            the environment variable `KVRAY_<ENGINE>_PYTHON` counts, and else kvray's own.
        output_dir: results folder: a local path, or a `pyarrow.fs` URI such as `s3://…`.
        space: `default`, `full`, or the path of a YAML file (see `space.space_file`).
        candidates: path of a JSON file that lists what is measured beside the baseline, in place of a space: a plan, or
            a list of candidates or of candidate ids in the records of `output_dir`.
        caches, attentions, dtypes, compiles: narrow an axis of the space (see `space.narrowing`); empty leaves it as it
            is. Not together with a space file.
        settings: values of the engine's own axes by name, e.g. `{"prefill_chunk": (None, 512)}`, each as it is or as a
            user writes it; `None`: not set. They narrow the space in the same way.
        parallelism: over how many GPUs candidates are spread, and how: `single`, `device_map=2`, `tp=2`; empty leaves
            that to the engine's space.
        static_len: tokens that every static cache holds that does not say so itself, in place of the cell's length.
        trust_remote_code: whether Python code that the model brings, and attention kernels by anybody, may run.
        allow_pickle: whether weights may come from pickle files, where there are no safetensors.
        offline: whether the network is forbidden; `HF_HUB_OFFLINE` in the environment does the same.
        address: address of a running Ray cluster; `None` starts a private local Ray.
        gpu_type: Ray's name for the type of GPU to measure on, e.g. `A100`, in a cluster that has several; `None` takes
            the type that it has most GPUs of.
        slots: trials measured at the same time; `None` means one per GPU, or one on a CPU.
        exclusive: whether no other trial of the sweep runs on a machine while one measures there.
        timeout_s: seconds that any one phase of a trial (load, warm-up, measuring a cell) may take before it is killed.
        resume: id of an earlier run in `output_dir`, whose recorded trials are not measured again.
        retry: of these, failures with one of these statuses that are measured again all the same.
        retry_disturbed: whether candidates whose figures rest on disturbed runs alone are measured again, too.
        wait_quiet_s: seconds that the sweep may wait, all in all, until no other program keeps the device busy: before
            the first trial and between trials. 0 waits for nothing.
        force: whether to go on with `resume` where machine, software, model or profile are others than they were:
            everything is measured anew then and not ranked together with what was measured before.
        search: how the space is searched.
        budget_s: seconds after which nothing more is launched; the best found until then is the result.
        max_trials: launches of the search, without the confirming ones.
        confirm_rounds: how often winner, rivals and baseline are measured again at most, each time in fresh processes.
        seed: of the search and of the confidence's draws.
        check_snippet: whether the winner's code is run once, in a process of its own, before it is handed over.
        forecast: whether what cannot fit into memory by forecast is left out; predictions are recorded with it.

    Raises:
        InvalidValueError: a field is unknown or has a value that is not allowed; all problems are named at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    model_id: Annotated[str, Field(min_length=1)]
    models_for: Mapping[str, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    profile: WorkloadProfile
    device: DeviceType | None = None
    engine: str = "transformers"
    engine_pythons: Mapping[str, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    output_dir: Annotated[str, Field(min_length=1)] = "kvray_results"
    space: Annotated[str, Field(min_length=1)] = DEFAULT_SPACE
    candidates: Annotated[str, Field(min_length=1)] | None = None
    caches: tuple[CacheChoice, ...] = ()
    attentions: tuple[AttentionChoice, ...] = ()
    dtypes: tuple[DType, ...] = ()
    compiles: tuple[CompileMode, ...] = ()
    settings: Mapping[str, tuple[ParamValue | None, ...]] = {}
    parallelism: tuple[ParallelChoice, ...] = ()
    static_len: Annotated[int, Field(ge=1)] | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    offline: bool = False
    address: str | None = None
    gpu_type: Annotated[str, Field(min_length=1)] | None = None
    slots: Annotated[int, Field(ge=1)] | None = None
    exclusive: bool = False
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    resume: str | None = None
    retry: tuple[TrialStatus, ...] = ()
    retry_disturbed: bool = False
    wait_quiet_s: Annotated[float, Field(ge=0)] = 0.0
    force: bool = False
    search: SearchStrategy = SearchStrategy.MODEL
    budget_s: Annotated[float, Field(gt=0)] | None = None
    max_trials: Annotated[int, Field(ge=1)] | None = None
    confirm_rounds: Annotated[int, Field(ge=0)] = CONFIRM_ROUNDS
    seed: Annotated[int, Field(ge=0)] = 0
    check_snippet: bool = True
    forecast: bool = True

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InvalidValueError(f"The configuration is not valid: {describe_problems(error)}.") from error

    @field_validator("output_dir", mode="before")
    @classmethod
    def _path_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, Path) else value

    @field_validator("caches", mode="before")
    @classmethod
    def _caches_by_name(cls, values: object) -> object:
        return _each(values, lambda value: CacheChoice.parse(value) if isinstance(value, str) else value)

    @field_validator("attentions", mode="before")
    @classmethod
    def _attentions_by_name(cls, values: object) -> object:
        return _each(values, lambda value: AttentionChoice.parse(value) if isinstance(value, str) else value)

    @field_validator("parallelism", mode="before")
    @classmethod
    def _parallelism_by_name(cls, values: object) -> object:
        return _each(values, lambda value: ParallelChoice.parse(value) if isinstance(value, str) else value)

    @model_validator(mode="after")
    def _one_source_of_axes(self) -> Self:
        if self.has_space_file and self.narrows:
            raise ValueError("a space file and options that narrow an axis exclude each other")
        if self.candidates is not None and (self.space != DEFAULT_SPACE or self.narrows or self.static_len):
            raise ValueError(
                "--candidates lists what is measured, so it excludes --space and options that narrow an axis"
            )
        return self

    @model_validator(mode="after")
    def _only_with_resume(self) -> Self:
        asked = {"--retry": self.retry or self.retry_disturbed, "--force": self.force}
        given = [name for name, is_given in asked.items() if is_given]
        if given and self.resume is None:
            raise ValueError(f"{' and '.join(given)} can only be used with --resume")
        return self

    @model_validator(mode="after")
    def _waits_for_this_machine(self) -> Self:
        if self.wait_quiet_s and self.address is not None:
            raise ValueError("--wait-quiet watches this machine, and cannot be used with --address")
        return self

    @model_validator(mode="after")
    def _names_a_clusters_gpus(self) -> Self:
        if self.gpu_type is not None and self.address is None:
            raise ValueError("--gpu-type chooses among the nodes of a cluster, and needs --address")
        if self.gpu_type is not None and self.device is DeviceType.CPU:
            raise ValueError("--gpu-type cannot be used with --device cpu")
        return self

    @field_validator("retry")
    @classmethod
    def _failures_only(cls, values: tuple[TrialStatus, ...]) -> tuple[TrialStatus, ...]:
        wrong = [value for value in values if not value.is_failure]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} is not a failure; allowed: {', '.join(TrialStatus.failures())}")
        return values

    @field_validator("engine", mode="before")
    @classmethod
    def _engines_as_text(cls, value: object) -> object:
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else value

    @field_validator("engine")
    @classmethod
    def _engines_once(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",")]
        if "" in names or len(set(names)) < len(names):
            raise ValueError(f"{value!r} is not a list of different engines; an example: transformers,vllm")
        return ",".join(names)

    @model_validator(mode="after")
    def _models_for_engines_that_take_part(self) -> Self:
        for name in self.models_for:
            if name not in self.engines:
                allowed = f"Allowed by --engine: {', '.join(self.engines)}"
                raise ValueError(f"--model-for names the engine {name!r}. {did_you_mean(name, self.engines)}{allowed}")
        return self

    @property
    def slots_beside(self) -> int:
        """Among how many trials a machine's CPUs are divided."""
        return 1 if self.exclusive or self.slots is None else self.slots

    @property
    def engines(self) -> tuple[str, ...]:
        """Names of the engines, the baseline's first."""
        return tuple(self.engine.split(","))

    def model_for(self, engine: str) -> str:
        """The model as `engine` is to take it."""
        return self.models_for.get(engine, self.model_id)

    @property
    def has_space_file(self) -> bool:
        """Whether `space` is a file's path."""
        return self.space not in (DEFAULT_SPACE, FULL_SPACE)

    @property
    def narrows(self) -> bool:
        """Whether any axis is narrowed."""
        return any((self.caches, self.attentions, self.dtypes, self.compiles, self.settings, self.parallelism))

    @field_validator("profile", mode="before")
    @classmethod
    def _profile_by_name(cls, value: object) -> object:
        return get_profile(value) if isinstance(value, str) else value


def _each(values: object, convert: Callable[[Any], Any]) -> object:
    return tuple(convert(value) for value in values) if isinstance(values, list | tuple) else values


def cache_dir() -> Path:
    """Where kvray keeps what it can make again (converted weights, compiled kernels): `$KVRAY_CACHE`, else
    `kvray` under `$XDG_CACHE_HOME`, else `~/.cache/kvray`. Not created here.

    Raises:
        InvalidValueError: none of them is known.
    """
    if own := os.environ.get("KVRAY_CACHE"):
        return Path(own)
    if common := os.environ.get("XDG_CACHE_HOME"):
        return Path(common) / "kvray"
    try:
        return Path.home() / ".cache" / "kvray"
    except RuntimeError as error:
        raise InvalidValueError(
            "There is no place for kvray's cache: HOME is not set, and this user has no home folder.",
            hint="Set KVRAY_CACHE to a folder that can be written.",
        ) from error


def warn_of_closed_cache() -> None:
    """Say what is lost where `cache_dir()` can neither be written nor made, or has no locks."""
    folder = cache_dir()
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        _logger.warning(
            "The cache folder %s cannot be written, so quality is measured only where its reference is there already, "
            "and compiled code is not kept. Set KVRAY_CACHE to another folder.",
            folder,
        )
        return
    with contextlib.suppress(OSError):  # a disk that is full is told of where it is written to
        if not has_locks(there):
            _logger.warning(
                "The cache folder %s lies on a file system without locks: what is compiled is not kept. Set "
                "KVRAY_CACHE to another folder.",
                folder,
            )
