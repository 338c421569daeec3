"""What a user's traffic looks like: `WorkloadProfile`, its cells, the built-in profiles, and their JSON files."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kvray.documents import read_document
from kvray.errors import InvalidValueError, OutputError, ProfileError, describe_problems

PositiveInt = Annotated[int, Field(gt=0, le=2**31 - 1)]
_MOST_BYTES = 1 << 20
MOST_LENGTHS = 100
"""Of a list in a profile. Each cell is measured several times by each candidate, so a longer one is a mistake."""
RUNG0_OUTPUT_TOKENS = 16
MAX_QUALITY_LOSS = 0.1
"""Default of `Limits.max_quality_loss`, nats per token. Measured by `benchmarks/quality.py` (docs/quality.md): exact
paths 1e-10, bfloat16 0.001 (SmolLM2-135M and Gemma-3-270M); caches of 8 bit up to 0.01, of 4 bit 0.02, of 2 bit 2; one
that has lost the sink 0.6 to 1.4, one with keys beside their values 7. So it is five times the worst that is meant to
pass and a sixth of the mildest that is not."""


class Cell(NamedTuple):
    """One point of a workload: prompt tokens and generated tokens per sequence, and sequences at once."""

    context_tokens: int
    output_tokens: int
    batch_size: int

    @property
    def label(self) -> str:
        """E.g. `512→32` or `512→32 ×4`."""
        batch = f" ×{self.batch_size}" if self.batch_size > 1 else ""
        return f"{self.context_tokens}→{self.output_tokens}{batch}"


class Weights(NamedTuple):
    """What each metric counts in the score; they sum to 1."""

    ttft: float
    throughput: float
    memory: float


class Objective(enum.StrEnum):
    """What a user wants most: a name for three weights."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    MEMORY = "memory"
    BALANCED = "balanced"

    @property
    def weights(self) -> Weights:
        """The weights that it stands for."""
        return OBJECTIVE_WEIGHTS[self]

    @classmethod
    def parse(cls, name: str) -> Objective:
        """The objective called `name`, in any case.

        Raises:
            InvalidValueError: there is none.
        """
        try:
            return cls(name.strip().lower())
        except ValueError:
            raise InvalidValueError.not_one_of("objective", name, list(cls)) from None


OBJECTIVE_WEIGHTS: Mapping[Objective, Weights] = MappingProxyType(
    {
        Objective.LATENCY: Weights(ttft=0.70, throughput=0.20, memory=0.10),
        Objective.THROUGHPUT: Weights(ttft=0.20, throughput=0.70, memory=0.10),
        Objective.MEMORY: Weights(ttft=0.15, throughput=0.15, memory=0.70),
        Objective.BALANCED: Weights(ttft=1 / 3, throughput=1 / 3, memory=1 / 3),
    }
)
"""No weight is 0: what is ahead by a hair in the metric that counts most must not win at any price in the others."""


class Limits(BaseModel):
    """What a candidate must keep, in every cell of the profile, to be ranked; `None` asks nothing (docs/limits.md).

    Attributes:
        max_ttft_ms: most time to the first token: of the slowest cell, each by the median of its runs.
        max_itl_ms: most time between two tokens: the 95th percentile, of the slowest cell.
        min_decode_tok_s: least throughput of all sequences together: of the slowest cell.
        max_peak_mib: most memory that must be free: the highest peak of any cell, and on a GPU what the process holds
            beside its allocator.
        max_quality_loss: mean KL of the reference from the candidate, nats per token; a trial beyond it ends there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_ttft_ms: Annotated[float, Field(gt=0)] | None = None
    max_itl_ms: Annotated[float, Field(gt=0)] | None = None
    min_decode_tok_s: Annotated[float, Field(gt=0)] | None = None
    max_peak_mib: Annotated[float, Field(gt=0)] | None = None
    max_quality_loss: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = MAX_QUALITY_LOSS


class WorkloadProfile(BaseModel):
    """Context and output lengths (tokens), repeats, scoring weights (they sum to 1) and limits of one workload.

    Raises:
        pydantic.ValidationError: on construction. `create_custom_profile` and `load_profile` raise `ProfileError`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=80)]
    description: str = ""
    context_lengths: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=MOST_LENGTHS)]
    output_lengths: Annotated[
        tuple[Annotated[PositiveInt, Field(ge=2)], ...], Field(min_length=1, max_length=MOST_LENGTHS)
    ]
    batch_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=MOST_LENGTHS)] = (1,)
    repeats: PositiveInt = 3
    weight_ttft: Annotated[float, Field(ge=0, le=1)]
    weight_throughput: Annotated[float, Field(ge=0, le=1)]
    weight_memory: Annotated[float, Field(ge=0, le=1)]
    limits: Limits = Limits()

    @field_validator("context_lengths", "output_lengths", "batch_sizes")
    @classmethod
    def _sorted_unique(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(values)))

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> Self:
        total = self.weight_ttft + self.weight_throughput + self.weight_memory
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"weight_ttft + weight_throughput + weight_memory is {total:g}, it must be 1")
        return self

    @property
    def weights(self) -> Weights:
        """The three weights of the score."""
        return Weights(ttft=self.weight_ttft, throughput=self.weight_throughput, memory=self.weight_memory)

    @property
    def objective(self) -> Objective | None:
        """The objective whose weights these are, `None` for weights of one's own."""
        return next((one for one in Objective if one.weights == self.weights), None)

    def with_objective(self, objective: Objective | str) -> WorkloadProfile:
        """This profile with the weights of `objective`, e.g. `get_profile("rag").with_objective("memory")`.

        Raises:
            InvalidValueError: there is no objective of this name.
        """
        return self.model_copy(update=_weight_fields(Objective.parse(objective).weights))

    def cells(self, batch_size: int, *, rung: int) -> tuple[Cell, ...]:
        """The cells that a candidate of `batch_size` is measured on at `rung`.

        Rung 0 has every context length once with 16 output tokens (fewer where the profile asks for fewer);
        rungs 1 and 2 have every cell at full length.
        """
        if rung == 0:
            outputs: tuple[int, ...] = (min(RUNG0_OUTPUT_TOKENS, max(self.output_lengths)),)
        else:
            outputs = self.output_lengths
        return tuple(Cell(context, output, batch_size) for context in self.context_lengths for output in outputs)

    def fit_to_context_limit(self, max_context: int | None) -> tuple[WorkloadProfile, tuple[int, ...]]:
        """This profile without the context lengths that leave no room for its longest output in `max_context` tokens.

        Returns:
            The fitted profile and the dropped context lengths.

        Raises:
            ProfileError: nothing is left.
        """
        if max_context is None:
            return self, ()
        room = max_context - max(self.output_lengths)
        dropped = tuple(context for context in self.context_lengths if context > room)
        kept = tuple(context for context in self.context_lengths if context <= room)
        if not kept:
            raise ProfileError(
                f"Profile {self.name!r} keeps no context length: the model holds {max_context} tokens, the profile "
                f"asks for prompts of {_listed(self.context_lengths)} and up to {max(self.output_lengths)} new tokens.",
                hint="Pass shorter ones with --context and --output-len.",
            )
        return self.model_copy(update={"context_lengths": kept}), dropped


_BUILT_IN = {
    profile.name: profile
    for profile in (
        WorkloadProfile(
            name="chat-agent",
            description="Many short turns: the first token matters most.",
            context_lengths=(2048, 4096, 8192),
            output_lengths=(64, 128, 256),
            weight_ttft=0.50,
            weight_throughput=0.35,
            weight_memory=0.15,
        ),
        WorkloadProfile(
            name="rag",
            description="Long retrieved prompts, medium answers: memory counts.",
            context_lengths=(8192, 16384, 32768),
            output_lengths=(256, 512),
            weight_ttft=0.35,
            weight_throughput=0.35,
            weight_memory=0.30,
        ),
        WorkloadProfile(
            name="longform",
            description="Long answers: throughput counts.",
            context_lengths=(4096, 8192),
            output_lengths=(1024, 2048),
            weight_ttft=0.25,
            weight_throughput=0.50,
            weight_memory=0.25,
        ),
        WorkloadProfile(
            name="ci-micro",
            description="One small cell, for trying kvray and for CI.",
            context_lengths=(512,),
            output_lengths=(32,),
            weight_ttft=0.40,
            weight_throughput=0.40,
            weight_memory=0.20,
        ),
    )
}


def list_profiles() -> tuple[str, ...]:
    """Names of the built-in profiles."""
    return tuple(_BUILT_IN)


def get_profile(name: str) -> WorkloadProfile:
    """The built-in profile called `name`, or the one in the JSON file at that path (a name ending in `.json`).

    Raises:
        ProfileError: unknown name, or the file is missing or malformed.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    if name.endswith(".json"):
        return load_profile(name)
    raise ProfileError(
        f"Unknown profile {name!r}.", hint=f"Allowed: {', '.join(_BUILT_IN)}, or the path of a profile's .json file."
    )


def create_custom_profile(
    name: str,
    *,
    context_lengths: list[int] | tuple[int, ...],
    output_lengths: list[int] | tuple[int, ...],
    weight_ttft: float,
    weight_throughput: float,
    weight_memory: float,
    description: str = "",
    batch_sizes: list[int] | tuple[int, ...] = (1,),
    repeats: int = 3,
    limits: Limits | None = None,
) -> WorkloadProfile:
    """A profile of one's own: lengths in tokens, weights that sum to 1, runs per cell.

    Raises:
        ProfileError: a value is not allowed; all problems are named at once.
    """
    return _validated(
        {
            "name": name,
            "description": description,
            "context_lengths": tuple(context_lengths),
            "output_lengths": tuple(output_lengths),
            "batch_sizes": tuple(batch_sizes),
            "repeats": repeats,
            "weight_ttft": weight_ttft,
            "weight_throughput": weight_throughput,
            "weight_memory": weight_memory,
            "limits": limits or Limits(),
        },
        source=f"Profile {name!r}",
    )


def load_profile(path: str | Path) -> WorkloadProfile:
    """Read a profile from the JSON file at `path`.

    Raises:
        ProfileError: the file is missing, not JSON, or not a profile.
    """
    try:
        data = json.loads(read_document(path, most_bytes=_MOST_BYTES))
    except OSError as error:
        raise ProfileError(f"Cannot read profile {str(path)!r}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"Profile {str(path)!r} is not valid JSON: {error}.") from error
    return _validated(data, source=f"Profile file {str(path)!r}")


def save_profile(profile: WorkloadProfile, path: str | Path) -> None:
    """Write `profile` as JSON to `path`; `load_profile` reads it back equal.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        Path(path).write_text(profile.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"Cannot write profile {str(path)!r}: {error.strerror}.") from error


def override_profile(
    profile: WorkloadProfile,
    *,
    context_lengths: tuple[int, ...] = (),
    output_lengths: tuple[int, ...] = (),
    batch_sizes: tuple[int, ...] = (),
    repeats: int | None = None,
    objective: Objective | None = None,
    limits: Mapping[str, float | None] = MappingProxyType({}),
) -> WorkloadProfile:
    """`profile` with what is given replaced (empty and `None` keep the profile's own; a `None` in `limits` lifts one).

    Raises:
        ProfileError: a value is not allowed.
    """
    given = {
        "context_lengths": context_lengths,
        "output_lengths": output_lengths,
        "batch_sizes": batch_sizes,
        "repeats": repeats,
    }
    changes: dict[str, object] = {field: value for field, value in given.items() if value not in ((), None)}
    if objective is not None:
        changes |= _weight_fields(objective.weights)
    if limits:
        changes["limits"] = {**profile.limits.model_dump(), **limits}
    return _validated({**profile.model_dump(), **changes}, source=f"Profile {profile.name!r}") if changes else profile


def _weight_fields(weights: Weights) -> dict[str, float]:
    return {f"weight_{metric}": weight for metric, weight in weights._asdict().items()}


def _validated(data: object, *, source: str) -> WorkloadProfile:
    try:
        return WorkloadProfile.model_validate(data)
    except ValidationError as error:
        raise ProfileError(f"{source} is not valid: {describe_problems(error)}.") from error


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(str(value) for value in values)
