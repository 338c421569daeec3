"""What a user writes into the YAML file of `kvray batch`: models, profiles, and what is asked of each sweep.

Every problem is told with its line, before anything starts. `docs/schema/batch.schema.json` is made from `BatchFile`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kvray.config import SearchStrategy, TuneConfig
from kvray.errors import InvalidValueError, ProfileError, did_you_mean, sentence_of
from kvray.files.documents import read_document
from kvray.judgement import OBJECTIVE_WEIGHTS, Judging, Limits, Objective
from kvray.tuning.batch_problems import plain_problem, split_name
from kvray.tuning.batch_words import in_file_words
from kvray.workload import WorkloadProfile, get_profile, override_profile

DEFAULT_PROFILES = ("chat-agent",)
_MOST_BYTES = 100_000
"""The parser needs seconds for a megabyte."""
_MOST_VALUES = 20_000
"""A few kilobytes of aliases can stand for millions of values."""
_DEEPEST = 12
_LIFTED = "off"
_OF_THE_PROFILE = ("profiles", "context_lengths", "output_lengths", "batch_sizes", "repeats", "objective", "limits")

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SweepSettings(_Strict):
    """What is asked of a sweep. All but the profile's part are fields of `TuneConfig`, as a user of `kvray tune` knows
    them."""

    profiles: Annotated[tuple[Text, ...], Field(min_length=1)] | None = Field(
        None, description="Workloads: built-in ones, or profiles' .json files. Each is a sweep of its own."
    )
    context_lengths: tuple[Count, ...] | None = Field(None, description="Prompt lengths in tokens.")
    output_lengths: tuple[Count, ...] | None = Field(None, description="Numbers of generated tokens.")
    batch_sizes: tuple[Count, ...] | None = Field(None, description="Sequences generated together.")
    repeats: Count | None = Field(None, description="Runs of each cell.")
    objective: Objective | None = Field(None, description="What counts most.")
    limits: dict[str, float | None] | None = Field(
        None, description=f"Limits that a candidate must keep: {', '.join(Limits.model_fields)}; off lifts one."
    )
    engine: Text | None = Field(None, description="Inference engine, or several with commas between them.")
    models_for: dict[str, Text] | None = Field(None, description="By engine, a file or id of the same model.")
    engine_pythons: dict[str, Text] | None = Field(None, description="By engine, a Python of its own.")
    space: Text | None = Field(None, description="default, full, or a YAML file of blocks.")
    candidates: Text | None = Field(None, description="JSON file: a plan, or a list of candidates.")
    caches: tuple[Text, ...] | None = Field(None, description="Cache strategies to measure.")
    attentions: tuple[Text, ...] | None = Field(None, description="Attention implementations to measure.")
    dtypes: tuple[Text, ...] | None = Field(None, description="Dtypes to measure.")
    compiles: tuple[Text, ...] | None = Field(None, description="torch.compile modes to measure.")
    settings: dict[str, tuple[Text, ...]] | None = Field(None, description="Values of the engine's own axes, by name.")
    parallelism: tuple[Text, ...] | None = Field(None, description="Over how many GPUs: single, device_map=2, tp=2.")
    static_len: Count | None = Field(None, description="Tokens that static caches hold, instead of the cell's.")
    trust_remote_code: bool | None = Field(None, description="Run Python code that the model brings.")
    allow_pickle: bool | None = Field(None, description="Accept pickled weights where there are no safetensors.")
    timeout_s: Annotated[float, Field(gt=0)] | None = Field(None, description="Seconds that one phase may take.")
    search: SearchStrategy | None = Field(None, description="How the space is searched.")
    budget_s: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Seconds that this sweep may take, beside its share of the batch's budget. "
        "On one of four slots a trial counts a quarter.",
    )
    max_trials: Count | None = Field(None, description="Launches of the search at most.")
    confirm_rounds: Annotated[int, Field(ge=0)] | None = Field(None, description="Confirming rounds at most.")
    seed: Annotated[int, Field(ge=0)] | None = Field(None, description="Seed of the search and of the confidence.")
    check_snippet: bool | None = Field(None, description="Run the winner's code once before it is handed over.")
    forecast: bool | None = Field(None, description="Leave out what cannot fit into memory by forecast.")

    @field_validator("limits", mode="before")
    @classmethod
    def _lifted(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        if unknown := [str(name) for name in value if name not in Limits.model_fields]:
            hint = did_you_mean(unknown[0], Limits.model_fields)
            raise ValueError(f"there is no limit {unknown[0]!r}. {hint}Allowed: {', '.join(Limits.model_fields)}")
        return {name: None if one == _LIFTED else one for name, one in value.items()}

    @property
    def given(self) -> dict[str, Any]:
        """What is said, as plain values."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def of_the_sweep(self) -> dict[str, Any]:
        """The part that is no profile's: fields of `TuneConfig`."""
        return {name: value for name, value in self.given.items() if name not in _OF_THE_PROFILE}

    def profile(self, name: str) -> WorkloadProfile:
        """The profile called `name` with what is said of it here.

        Raises:
            ProfileError: there is none, or a value is not allowed.
        """
        return override_profile(
            get_profile(name),
            context_lengths=self.context_lengths or (),
            output_lengths=self.output_lengths or (),
            batch_sizes=self.batch_sizes or (),
            repeats=self.repeats,
            judging=Judging(
                weights=None if self.objective is None else OBJECTIVE_WEIGHTS[self.objective], limits=self.limits or {}
            )
            if self.objective is not None or self.limits
            else None,
        )


class ModelEntry(SweepSettings):
    """One model, and in what it differs from the defaults."""

    model: Text = Field(description="A hub id, a local folder, a .gguf file, or random:<folder or config.json>.")


class BatchFile(_Strict):
    """Many models, tuned in one go with `kvray batch`."""

    defaults: SweepSettings = Field(SweepSettings(), description="What is asked of every sweep.")
    models: Annotated[tuple[Text | ModelEntry, ...], Field(min_length=1)] = Field(
        description="Models, each as its name alone or with what differs from the defaults."
    )


class AskedSweep(_Strict):
    """One sweep that a batch file asks for.

    Attributes:
        settings: fields of `TuneConfig`, as plain values.
    """

    model_id: str
    profile: WorkloadProfile
    settings: dict[str, Any]


def read_batch_file(path: str | Path) -> tuple[AskedSweep, ...]:
    """The sweeps that the file at `path` asks for, model by model.

    Raises:
        InvalidValueError: it cannot be read, or something in it is not allowed; each problem is told with its line.
    """
    try:
        node = yaml.compose(read_document(path, most_bytes=_MOST_BYTES), Loader=yaml.BaseLoader)
    except OSError as error:
        raise InvalidValueError(
            f"Cannot read batch file {str(path)!r}: {error.strerror}.",
            hint="kvray batch --init FILE writes an example.",
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidValueError(f"Batch file {str(path)!r} is not valid YAML: {_yaml_reason(error)}.") from error
    return _File(str(path), node).sweeps()


class _File:
    """A parsed file, and the lines that its values stand in."""

    def __init__(self, path: str, node: yaml.Node | None) -> None:
        self._path = path
        self._lines: dict[tuple[Any, ...], int] = {}
        self._count = 0
        if node is None:
            raise InvalidValueError(f"Batch file {path!r} is empty.", hint="kvray batch --init FILE writes an example.")
        self._data = self._value(node, ())

    def sweeps(self) -> tuple[AskedSweep, ...]:
        try:
            file = BatchFile.model_validate(self._data)
        except ValidationError as error:
            raise self._error(self._pydantic_problems(error)) from error
        found: list[AskedSweep] = []
        problems: list[tuple[int, str]] = []
        for number, model in enumerate(file.models):
            entry = ModelEntry(model=model) if isinstance(model, str) else model
            own = {name: getattr(entry, name) for name in entry.model_fields_set if name != "model"}
            settings = file.defaults.model_copy(update=own)
            for name in settings.profiles or DEFAULT_PROFILES:
                try:
                    sweep = AskedSweep(
                        model_id=entry.model, profile=settings.profile(name), settings=settings.of_the_sweep
                    )
                    TuneConfig(model_id=sweep.model_id, profile=sweep.profile, **sweep.settings)
                    found.append(sweep)
                except (InvalidValueError, ProfileError) as error:
                    problems.append(self._sweep_problem(number, own, settings.of_the_sweep, error))
        if problems:
            raise self._error(dict.fromkeys(problems))
        self._check_no_twins(found)
        return tuple(found)

    def _check_no_twins(self, sweeps: Sequence[AskedSweep]) -> None:
        for place, sweep in enumerate(sweeps):
            if sweep in sweeps[:place]:
                raise InvalidValueError(
                    f"Batch file {self._path!r} asks twice for {sweep.model_id!r} with profile {sweep.profile.name!r}.",
                    hint="Leave one out, or give them different settings.",
                )

    def _value(self, node: yaml.Node, place: tuple[Any, ...]) -> Any:
        """Plain values, every scalar a text (`off` stays `off`), with a note of the line of each."""
        self._count += 1
        if self._count > _MOST_VALUES or len(place) > _DEEPEST:
            raise InvalidValueError(f"Batch file {self._path!r} has too many values, or too many levels.")
        self._lines.setdefault(place, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            found: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
                line = key_node.start_mark.line + 1
                if key in found:
                    raise self._error([(line, f"{key} is given twice")])
                self._lines[(*place, key)] = line
                found[key] = self._value(value_node, (*place, key))
            return found
        if isinstance(node, yaml.SequenceNode):
            return [self._value(one, (*place, number)) for number, one in enumerate(node.value)]
        return node.value

    def _pydantic_problems(self, error: ValidationError) -> Iterator[tuple[int, str]]:
        for problem in error.errors(include_url=False):
            if self._follows_from_another(problem):
                continue
            place = tuple(part for part in problem["loc"] if not _is_alternative(part))
            line = self._line(place)
            key = ".".join(str(part) for part in place)
            if problem["type"] == "extra_forbidden":
                yield line, self._unknown_key(place)
            elif problem["type"] == "missing":
                yield line, f"{key} is missing"
            else:
                yield line, plain_problem(key, problem)

    def _unknown_key(self, place: tuple[Any, ...]) -> str:
        if (name := split_name(self._entry(place))) is not None:
            return f"write {name} without a space after the colon"
        allowed = _allowed_keys(place)
        return f"there is no key {place[-1]!r}. {did_you_mean(place[-1], allowed)}Allowed: {', '.join(allowed)}"

    def _follows_from_another(self, problem: Mapping[str, Any]) -> bool:
        """Whether only what pydantic made of another problem is wrong, or the way in which a model is not written."""
        place = problem["loc"]
        if problem["type"] == "too_short" and place == ("models",):
            return bool(self._data["models"])  # they are told of one by one
        if place[:1] != ("models",) or len(place) <= 2:
            return False
        is_split = split_name(self._entry(place)) is not None
        return self._is_of_other_kind(place) or (is_split and problem["type"] == "missing")

    def _entry(self, place: tuple[Any, ...]) -> object:
        """What the file has for the model at `place`."""
        models = self._data.get("models") if isinstance(self._data, dict) else None
        return models[place[1]] if place[:1] == ("models",) and isinstance(models, list) and len(place) > 1 else None

    def _is_of_other_kind(self, place: tuple[Any, ...]) -> bool:
        """Whether a problem is that of the way in which this model is not written: as its name, or as a mapping."""
        return (place[2] == "ModelEntry") is not isinstance(self._entry(place), dict)

    def _line(self, place: tuple[Any, ...]) -> int:
        while place and place not in self._lines:
            place = place[:-1]
        return self._lines.get(place, 1)

    def _sweep_problem(
        self, number: int, own: Mapping[str, Any], settings: Mapping[str, Any], error: Exception
    ) -> tuple[int, str]:
        """The line of the key that is at fault, in the model's entry or in the defaults."""
        keys = ["profiles"] if isinstance(error, ProfileError) else _keys_at_fault(settings)
        lines = (self._lines.get(("models", number, key) if key in own else ("defaults", key)) for key in keys)
        line = next((one for one in lines if one is not None), self._line(("models", number)))
        return line, in_file_words(sentence_of(error)).removeprefix("The configuration is not valid: ").rstrip(".")

    def _error(self, problems: Any) -> InvalidValueError:
        told = "; ".join(f"line {line}: {text}" for line, text in sorted(problems))
        return InvalidValueError(f"Batch file {self._path!r} is not valid: {told}.")


def _keys_at_fault(settings: Mapping[str, Any]) -> list[str]:
    """Those that are not allowed by themselves; none where only some of them together are."""
    found = []
    for key, value in settings.items():
        alone = {key: value, **({"engine": settings["engine"]} if key == "models_for" and "engine" in settings else {})}
        try:
            TuneConfig(model_id="any", profile=get_profile(DEFAULT_PROFILES[0]), **alone)
        except InvalidValueError:
            found.append(key)
    return found


def _is_alternative(part: object) -> bool:
    """Whether pydantic names one of several kinds of a value here, which is no key."""
    return isinstance(part, str) and (
        part in ("ModelEntry", "[key]") or bool(re.match(r"(constrained-)?str\b|.*\[", part))
    )


def _allowed_keys(place: tuple[Any, ...]) -> list[str]:
    if len(place) == 1:
        return list(BatchFile.model_fields)
    settings = list(SweepSettings.model_fields)
    return settings if place[0] == "defaults" else ["model", *settings]


def _yaml_reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark is not None:
        return f"{error.problem}, in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    return sentence_of(error)


EXAMPLE = """\
# Run it with: kvray batch models.yaml --budget 8h
# What it would measure: kvray batch models.yaml --dry-run

# What is asked of every sweep. All keys are optional.
defaults:
  # Each model is measured for each of these workloads: built-in ones (kvray profiles), or profiles' .json files.
  profiles: [chat-agent]
  # context_lengths: [512, 2048]
  # output_lengths: [64]
  # objective: latency          # latency, throughput, memory or balanced
  # limits: {max_peak_mib: 8000, max_ttft_ms: 400}
  # caches: [dynamic, static]
  # attentions: [sdpa, eager]
  # dtypes: [bfloat16]
  # compiles: [off]
  # settings: {prefill_chunk: [none, 512]}
  # max_trials: 20

# Models: hub ids, local folders, .gguf files. One that fails is a row of the overview; the others go on.
models:
  - HuggingFaceTB/SmolLM2-135M-Instruct
  # With anything that differs from the defaults:
  - model: Qwen/Qwen2.5-0.5B-Instruct
    profiles: [ci-micro]
    max_trials: 8
"""
"""What `kvray batch --init` writes."""
