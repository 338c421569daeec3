"""`Plan`: the versioned JSON that says which candidate to use when, and on which measurements that rests.

Written by `PlanBuilder`, read by whoever applies it. Every value is validated on the way in: plans are edited by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    model_validator,
)

from kvray.candidate import Candidate, DeviceType
from kvray.errors import InvalidValueError, OutputError, PlanError, describe_problems
from kvray.files.documents import read_document
from kvray.files.file_systems import write_whole
from kvray.files.remote import is_uri, without_secrets
from kvray.record import known_versions
from kvray.store.manifest import CodeCheck
from kvray.workload import WorkloadProfile

PLAN_VERSION: Literal[1] = 1
_MOST_BYTES = 16 << 20

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Gain = Annotated[float, Field(gt=-1)]
Share = Annotated[float, Field(ge=0, le=1)]
Revision = Annotated[str, Field(pattern=r"^\w[\w.:-]{0,99}$")]
"""Never a path: the hub's client looks for it among its files."""


def _to_candidate(value: Any) -> Candidate:
    if isinstance(value, Candidate):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not a candidate")  # noqa: TRY004  (pydantic lets a TypeError through)
    try:
        return Candidate.from_dict(value)
    except InvalidValueError as error:
        raise ValueError(str(error)) from error


CandidateField = Annotated[
    Candidate, PlainValidator(_to_candidate), PlainSerializer(Candidate.to_dict, return_type=dict[str, Any])
]


class _PlanPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PlannedMetrics(_PlanPart):
    """What a candidate measured: geometric means over the profile's cells.

    Attributes:
        highest_peak_mib: peak of its hungriest cell: what must be free for every cell to run.
    """

    ttft_ms: Positive
    itl_p50_ms: NotNegative
    itl_p95_ms: NotNegative
    itl_p99_ms: NotNegative
    decode_tok_s: Positive
    peak_mib: Positive | None
    highest_peak_mib: Positive | None


class PlannedCandidate(_PlanPart):
    """A candidate and what it measured."""

    candidate: CandidateField
    metrics: PlannedMetrics


class GainInterval(_PlanPart):
    """95 % interval of a relative gain."""

    low: float
    high: float


class PlannedGain(_PlanPart):
    """The winner against the baseline; positive is better, 1.0 is twice as good (as `kvray.analysis.ranking.Gain`)."""

    ttft: Gain
    throughput: Gain
    memory: Gain | None
    ttft_interval: GainInterval | None = None
    throughput_interval: GainInterval | None = None


class PlannedConfidence(_PlanPart):
    """How sure the winner is (as `kvray.analysis.confidence.Confidence`)."""

    winner_share: Share
    replicates: Annotated[int, Field(gt=0)]
    processes: Annotated[int, Field(gt=0)]
    runs: Annotated[int, Field(gt=0)]
    assumed_process_noise: bool
    confirm_rounds: Annotated[int, Field(ge=0)] = 0
    is_disturbed: bool = False


class PlannedWinner(PlannedCandidate):
    """The decision.

    Attributes:
        ties: ids of candidates that cannot be told apart from it; they are in the plan's `candidates`.
        threads: with which its trials computed; `None` where that was not told.
        break_even_tokens: generated tokens that earn its extra cold cost back; 0 without such cost, `None` if never.
    """

    score: NotNegative
    gain: PlannedGain | None
    confidence: PlannedConfidence | None
    ties: tuple[str, ...] = ()
    break_even_tokens: NotNegative | None
    threads: Annotated[int, Field(gt=0)] | None = None


class Range(_PlanPart):
    """A range that includes both ends; `None` is open."""

    min: NotNegative | None = None
    max: NotNegative | None = None

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a range needs a min or a max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self

    def describe(self) -> str:
        """E.g. `512 to 2048`, `at most 900`."""
        if self.min is None:
            return f"at most {self.max:g}"
        if self.max is None:
            return f"at least {self.min:g}"
        return f"{self.min:g}" if self.min == self.max else f"{self.min:g} to {self.max:g}"

    def holds(self, value: float | None) -> bool:
        """Whether `value` lies within; an unknown value does not."""
        return value is not None and (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class RuleCondition(_PlanPart):
    """All given parts must hold; with none given it always does. `on` waits for an event instead of a request."""

    context_tokens: Range | None = None
    batch_size: Range | None = None
    free_vram_mib: Range | None = None
    on: Literal["oom"] | None = None

    def describe(self) -> str:
        """E.g. `context_tokens 512 to 2048, batch_size 1`, `on oom`, `otherwise`."""
        ranges = {name: getattr(self, name) for name in ("context_tokens", "batch_size", "free_vram_mib")}
        parts = [f"{name} {wanted.describe()}" for name, wanted in ranges.items() if wanted is not None]
        if self.on is not None:
            parts.append(f"on {self.on}")
        return ", ".join(parts) or "otherwise"

    @property
    def is_always(self) -> bool:
        """Whether every request meets it."""
        return self == RuleCondition()

    def holds(self, *, context_tokens: int, batch_size: int, free_vram_mib: float | None) -> bool:
        """Whether a request meets it. No request meets a condition that waits for an event."""
        return self.on is None and all(
            wanted is None or wanted.holds(value)
            for wanted, value in (
                (self.context_tokens, context_tokens),
                (self.batch_size, batch_size),
                (self.free_vram_mib, free_vram_mib),
            )
        )


class Rule(_PlanPart):
    """Use the candidate with id `use` when `when` holds; `evidence` is the measurement it rests on, as a sentence."""

    when: RuleCondition
    use: str
    evidence: str


class PlanFingerprint(_PlanPart):
    """What was measured on: elsewhere the plan is a guess.

    Attributes:
        engine_versions: of the engine's libraries, by name; empty in older plans.
    """

    device_name: str | None
    driver_version: str | None
    engine_versions: dict[str, str] = Field(default_factory=dict)
    torch_version: str | None
    transformers_version: str | None
    kvray_version: str | None

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the engine's libraries by name, of older plans too."""
        return known_versions(self, self.engine_versions)


class PlannedBest(PlannedCandidate):
    """The best ranked candidate of one engine, against that engine's own default.

    Attributes:
        default: what the engine does with nothing set; `None` where that was not measured completely.
        gain: over `default`; `None` without one.
    """

    default: PlannedCandidate | None = None
    gain: PlannedGain | None = None


class PlannedEngine(_PlanPart):
    """The model as a further engine has it; fields as in `Plan`."""

    model_id: Annotated[str, Field(min_length=1)]
    model_revision: Revision | None = None
    architecture: str
    loader: str | None = None


class Plan(_PlanPart):
    """What to run, when to run something else, and why.

    Attributes:
        kvray_version: the version that wrote the plan; the one that measured is in `fingerprint`.
        created_at: when the plan was written; `measured_at` is when its sweep began.
        model_revision: what identifies the weights that were measured (a commit of the hub, a file's hash).
        loader: what of the engine's library loads the model, where there is a choice.
        engine: of the winner; `model_id`, `model_revision`, `architecture` and `loader` are what it says.
        other_engines: by name, of candidates that have another one than the winner.
        engines: by name, the best that each engine of the sweep can do; empty where there was one.
        device: the kind of device that was measured.
        notes: what a reader of the figures must know of the model, one sentence each.
        sent_models: of models that were sent to a cluster, by the path of their temporary copy how the user named them.
        allow_pickle: whether weights might come from pickle files, where there were no safetensors.
        is_partial: whether the sweep was interrupted, so that what it did not measure may be better than the winner.
        code_check: whether the generated code does what was measured; `None` where that was not tried.
        baseline: what a user has today, `None` if it did not complete.
        candidates: by candidate id, every one that rules or ties name.
        rules: first match wins; the last one always matches.
        records_sha256: of the records that it was made from.
    """

    plan_version: Literal[1] = PLAN_VERSION
    kvray_version: str
    created_at: AwareDatetime
    measured_at: AwareDatetime
    run_id: str
    model_id: Annotated[str, Field(min_length=1)]
    model_revision: Revision | None = None
    architecture: str
    loader: str | None = None
    engine: Annotated[str, Field(min_length=1)]
    other_engines: dict[str, PlannedEngine] = {}
    engines: dict[str, PlannedBest] = {}
    device: DeviceType
    trust_remote_code: bool = False
    allow_pickle: bool = False
    notes: tuple[str, ...] = ()
    sent_models: dict[str, str] = {}
    is_partial: bool = False
    code_check: CodeCheck | None = None
    profile: WorkloadProfile
    winner: PlannedWinner
    baseline: PlannedCandidate | None
    candidates: dict[str, PlannedCandidate]
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]
    fingerprint: PlanFingerprint
    records_sha256: str

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for key, planned in self.candidates.items():
            if planned.candidate.candidate_id != key:
                raise ValueError(
                    f"candidate {key!r} does not match its fields, whose id is {planned.candidate.candidate_id!r}"
                )
        named = (self.winner.candidate.candidate_id, *self.winner.ties, *(rule.use for rule in self.rules))
        unknown = sorted(set(named) - set(self.candidates))
        if unknown:
            raise ValueError(f"candidates lacks {', '.join(unknown)}, which the winner, a tie or a rule names")
        if not self.rules[-1].when.is_always:
            raise ValueError("the last rule must hold always: its `when` must be empty")
        return self

    def engine_of(self, candidate: Candidate) -> str:
        """Name of the engine that runs `candidate`."""
        return candidate.engine if candidate.engine in self.other_engines else self.engine

    @property
    def shown_model(self) -> str:
        """How the user named the model."""
        return self.sent_models.get(self.model_id, self.model_id)

    def model_of(self, engine: str) -> PlannedEngine:
        """The model as `engine` has it."""
        own = {name: getattr(self, name) for name in PlannedEngine.model_fields}
        return self.other_engines.get(engine) or PlannedEngine(**own)

    @property
    def foreign_code(self) -> tuple[str, ...]:
        """Code by others that the plan runs, each as a phrase. Whoever applies the plan must trust its authors."""
        kernels = {one.candidate.foreign_kernel for one in self.candidates.values()} - {None}
        own = ("Python code that the model brings",) if self.trust_remote_code else ()
        return (*own, *(f"kernel {name} from the hub" for name in sorted(filter(None, kernels))))

    def to_json(self) -> str:
        """The text of a plan's file; `load_plan_file` reads it back equal."""
        return self.model_dump_json(indent=2) + "\n"

    def choose(self, context_tokens: int, batch_size: int = 1, free_vram_mib: float | None = None) -> Candidate:
        """The candidate for a request: that of the first rule that holds.

        Args:
            context_tokens: prompt tokens of each sequence.
            free_vram_mib: device memory that the model may take (nothing of it loaded yet); `None` if unknown, and then
                no rule about it holds.
        """
        request = {"context_tokens": context_tokens, "batch_size": batch_size}
        rule = next(rule for rule in self.rules if rule.when.holds(**request, free_vram_mib=free_vram_mib))
        return self.candidates[rule.use].candidate

    def fallback_after(self, candidate_id: str) -> Candidate | None:
        """What to try after `candidate_id` ran out of memory: the first `on: oom` rule whose candidate has the same
        batch size and a lower highest peak. `None` if there is none.

        Raises:
            InvalidValueError: the plan does not know `candidate_id`.
        """
        if candidate_id not in self.candidates:
            raise InvalidValueError.not_one_of("candidate of the plan", candidate_id, self.candidates)
        failed = self.candidates[candidate_id]
        options = (self.candidates[rule.use] for rule in self.rules if rule.when.on == "oom")
        return next((option.candidate for option in options if _is_leaner(option, failed)), None)


def _is_leaner(option: PlannedCandidate, failed: PlannedCandidate) -> bool:
    peak, limit = option.metrics.highest_peak_mib, failed.metrics.highest_peak_mib
    if option.candidate.batch_size != failed.candidate.batch_size or peak is None or limit is None:
        return False
    return peak < limit


def load_plan_file(path: str | Path) -> Plan:
    """Read the plan at `path`.

    Raises:
        PlanError: missing, not JSON, not a valid plan, or of a version that this kvray does not read.
    """
    source, path = path, without_secrets(str(path)) if is_uri(path) else path
    try:
        text = read_document(source, most_bytes=_MOST_BYTES)
        data = json.loads(text)
    except OSError as error:
        raise PlanError(f"Cannot read plan {str(path)!r}: {error.strerror}.", hint=_WHERE_PLANS_ARE) from error
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{str(path)!r} is not a plan: it is not JSON ({error}).", hint=_WHERE_PLANS_ARE) from error
    _check_version(data, path)
    try:
        return Plan.model_validate_json(text)
    except ValidationError as error:
        raise PlanError(f"Plan {str(path)!r} is not valid: {describe_problems(error)}.") from error


def save_plan(plan: Plan, path: str | Path) -> None:
    """Write `plan` as JSON to `path`, whole or not at all; `load_plan_file` reads it back equal.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        write_whole(Path(path), plan.to_json().encode())
    except OSError as error:
        raise OutputError(f"Cannot write plan {str(path)!r}: {error.strerror}.") from error


_WHERE_PLANS_ARE = "kvray tune writes one as reports/RUN_ID/best_plan.json in the results folder."
_OTHER_FILES = {
    "manifest_version": "it is the manifest of a sweep",
    "context_lengths": "it is the profile of a workload",
    "model_type": "it is the config of a model",
}
"""Files that are mistaken for plans, each by a key that it has."""


def _check_version(data: object, path: str | Path) -> None:
    if not isinstance(data, dict):
        what = f"it holds a {type(data).__name__}, not an object"
        raise PlanError(f"{str(path)!r} is not a plan: {what}.", hint=_WHERE_PLANS_ARE)
    if "plan_version" not in data:
        what = next((known for key, known in _OTHER_FILES.items() if key in data), "it has no plan_version")
        raise PlanError(f"{str(path)!r} is not a plan: {what}.", hint=_WHERE_PLANS_ARE)
    version = data["plan_version"]
    if version == PLAN_VERSION and not isinstance(version, bool):
        return
    newer = isinstance(version, int) and version > PLAN_VERSION
    raise PlanError(
        f"Plan {str(path)!r} has plan_version {version!r}; this kvray reads version {PLAN_VERSION}.",
        hint="Upgrade kvray, or tune again." if newer else "Tune again to get a plan.",
    )
