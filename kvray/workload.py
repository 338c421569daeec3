"""What a user's traffic looks like: `WorkloadProfile`, its cells, the built-in profiles, and their JSON files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kvray.errors import OutputError, ProfileError, describe_problems, did_you_mean
from kvray.files.documents import read_document
from kvray.judgement import MAX_QUALITY_LOSS as MAX_QUALITY_LOSS
from kvray.judgement import Judging, Weights
from kvray.judgement import Limits as Limits
from kvray.judgement import Objective as Objective

PositiveInt = Annotated[int, Field(gt=0, le=2**31 - 1)]
_MOST_BYTES = 1 << 20
MOST_LENGTHS = 100
"""Most entries of a list in a profile. Every candidate measures each cell several times; a longer list is a mistake."""
RUNG0_OUTPUT_TOKENS = 16
LONGEST_NAME = 80
_CHANGED = ", changed"
"""Ends the name of a profile that was measured with other lengths or batch sizes than its own."""


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


@lru_cache(maxsize=256)
def _cells(contexts: tuple[int, ...], outputs: tuple[int, ...], batch_size: int) -> tuple[Cell, ...]:
    """Remembered, because every trial of a sweep is asked for the same ones."""
    return tuple(Cell(context, output, batch_size) for context in contexts for output in outputs)


class WorkloadProfile(BaseModel):
    """Context and output lengths (tokens), repeats, scoring weights (they sum to 1) and limits of one workload.

    Raises:
        pydantic.ValidationError: on construction. `create_custom_profile` and `load_profile` raise `ProfileError`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
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
    def shown_name(self) -> str:
        """The name for people: what of the profile was changed is part of it."""
        plain = self.name.removesuffix(_CHANGED)
        return self.name if plain == self.name else f"{plain} with other lengths or batch sizes"

    @property
    def shape(self) -> tuple[tuple[int, ...], ...]:
        """Lengths and batch sizes: what its cells are made of."""
        return self.context_lengths, self.output_lengths, self.batch_sizes

    @property
    def measured(self) -> dict[str, Any]:
        """The part that decides which runs are made: lengths, batch sizes and repeats. Weights and limits judge what
        was measured, name and description do neither."""
        return self.model_dump(mode="json", exclude=_NOT_MEASURED)

    @property
    def judgement(self) -> dict[str, Any]:
        """The part that decides how measurements are judged: weights and limits."""
        return self.model_dump(mode="json", include=_JUDGES)

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

    def without_quality_limit(self) -> WorkloadProfile:
        """This profile with any loss of quality allowed."""
        return self.model_copy(update={"limits": self.limits.model_copy(update={"max_quality_loss": None})})

    def cells(self, batch_size: int, *, rung: int) -> tuple[Cell, ...]:
        """The cells that a candidate of `batch_size` is measured on at `rung`.

        Rung 0 has every context length once with 16 output tokens (fewer where the profile asks for fewer);
        rungs 1 and 2 have every cell at full length.
        """
        if rung == 0:
            outputs: tuple[int, ...] = (min(RUNG0_OUTPUT_TOKENS, max(self.output_lengths)),)
        else:
            outputs = self.output_lengths
        return _cells(self.context_lengths, outputs, batch_size)

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
                f"No context length of profile {self.name!r} fits: the model holds {max_context} tokens, and the "
                f"profile asks for prompts of {_listed(self.context_lengths)} and up to {max(self.output_lengths)} new "
                "tokens.",
                hint="Pass shorter ones with --context and --output-len.",
            )
        return _renamed(self.model_copy(update={"context_lengths": kept}), self), dropped


_JUDGES = {"weight_ttft", "weight_throughput", "weight_memory", "limits"}
_NOT_MEASURED = {"name", "description", *_JUDGES}

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
    allowed = f"{', '.join(_BUILT_IN)}, or the path of a profile's .json file"
    raise ProfileError(f"Unknown profile {name!r}.", hint=f"{did_you_mean(name, _BUILT_IN)}Allowed: {allowed}.")


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
    judging: Judging | None = None,
) -> WorkloadProfile:
    """`profile` with what is given replaced; empty and `None` keep the profile's own.

    With other lengths or batch sizes it is another workload, and called so: `chat-agent, changed`.

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
    if judging is not None:
        changes |= _weight_fields(judging.weights) if judging.weights else {}
        changes["limits"] = {**profile.limits.model_dump(), **judging.limits}
    if not changes:
        return profile
    return _renamed(_validated({**profile.model_dump(), **changes}, source=f"Profile {profile.name!r}"), profile)


def _renamed(profile: WorkloadProfile, before: WorkloadProfile) -> WorkloadProfile:
    """`profile`, called changed where its cells are not those of `before`."""
    if profile.shape == before.shape or before.name.endswith(_CHANGED):
        return profile
    return profile.model_copy(update={"name": f"{before.name[: LONGEST_NAME - len(_CHANGED)]}{_CHANGED}"})


def _weight_fields(weights: Weights) -> dict[str, float]:
    return {f"weight_{metric}": weight for metric, weight in weights._asdict().items()}


def _validated(data: object, *, source: str) -> WorkloadProfile:
    try:
        return WorkloadProfile.model_validate(data)
    except ValidationError as error:
        raise ProfileError(f"{source} is not valid: {describe_problems(error)}.", hint=_keys_hint(error)) from error


def _keys_hint(error: ValidationError) -> str | None:
    """What keys there are, where an unknown one is among the problems."""
    unknown = [one["loc"] for one in error.errors(include_url=False) if one["type"] == "extra_forbidden"]
    levels = (("", WorkloadProfile, 1), (" under limits", Limits, 2))
    hints = (
        _allowed_keys(where, kind, [str(one[-1]) for one in unknown if len(one) == depth])
        for where, kind, depth in levels
    )
    return " ".join(hint for hint in hints if hint) or None


def _allowed_keys(where: str, kind: type[BaseModel], unknown: Sequence[str]) -> str:
    if not unknown:
        return ""
    names = list(kind.model_fields)
    return f"{''.join(did_you_mean(name, names) for name in unknown)}Allowed keys{where}: {', '.join(names)}."


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(str(value) for value in values)
