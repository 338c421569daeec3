"""`SweepManifest`: what a sweep was asked and found out before its first trial; what makes its records readable."""

from __future__ import annotations

import datetime as dt
import enum
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from kvray.candidate import DeviceType
from kvray.judgement import Judging
from kvray.record import RANDOM_PREFIX
from kvray.store.fingerprint import SweepFingerprint
from kvray.store.paths import batch_of_run
from kvray.workload import WorkloadProfile, override_profile

MANIFEST_VERSION = 2
"""2: a sweep may have several attempts and fingerprints. A kvray that knows only 1 would rank them together."""


def _in_utc(moment: dt.datetime) -> dt.datetime:
    try:
        return moment.astimezone(dt.UTC)
    except OverflowError as error:
        raise ValueError("no such time in UTC") from error


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]


class SweepAttempt(BaseModel):
    """One `kvray tune` at a sweep: the first one, or one with `--resume`.

    Attributes:
        ended_at: when it came to its end; `None` while it runs, and for ever where it was interrupted or killed. Where
            all that it asks was answered before it began, its start at first, see `asks_nothing_new`.
        candidates: of the space; each is launched or gets a record that says why it was not.
        fingerprint_id: what the column `fingerprint` of its records says.
        arguments, search, budget_s, max_trials, confirm_rounds, seed: see `SweepManifest`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    started_at: Moment
    ended_at: Moment | None = None
    kvray_version: str
    candidates: int | None = None
    fingerprint_id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    fingerprint: SweepFingerprint
    arguments: tuple[str, ...] = ()
    search: str | None = None
    budget_s: float | None = None
    max_trials: int | None = None
    confirm_rounds: int = 0
    seed: int = 0

    def without_quality_limit(self) -> SweepAttempt:
        """The same without a limit for the loss of quality."""
        profile = self.fingerprint.profile
        changed = None if profile is None else profile.without_quality_limit()
        return self.model_copy(update={"fingerprint": self.fingerprint.model_copy(update={"profile": changed})})


class CodeOutcome(enum.StrEnum):
    """What came of running the winner's code once."""

    CHECKED = "checked"
    """It does what was measured."""
    DIFFERS = "differs"
    FAILED = "failed"
    NOT_RUN = "not_run"


class CodeCheck(BaseModel):
    """Whether the code that is handed over does what was measured.

    Attributes:
        candidate_id: whose code it is.
        fingerprint_id: of the trials that it was held against.
        text: what was seen, or why nothing was: one sentence.
        wall_s: how long the code ran, seconds, libraries and weights included; `None` where it was not run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidate_id: str
    fingerprint_id: str | None
    outcome: CodeOutcome
    text: str
    wall_s: float | None = None


class EngineModel(BaseModel):
    """The model as one engine of a sweep has it; fields as in `SweepManifest`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_id: str
    model_revision: str
    architecture: str
    loader: str | None = None
    weights: str | None = None


class MeasuredType(BaseModel):
    """One of several types of GPU that a sweep measures on; further fields as in `SweepManifest`.

    Attributes:
        gpu_type: Ray's accelerator type.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu_type: str
    device_name: str
    baseline_id: str
    defaults: dict[str, str] = {}
    left_out: tuple[tuple[str, str, str], ...] = ()


class SweepManifest(BaseModel):
    """Written to `sweeps/<run_id>.json` when the sweep starts, anew with every attempt at it, and when one ends.

    All but `created_at` and `attempts` tells of the last attempt.

    Attributes:
        created_at: when the first attempt began.
        loader: `ModelInfo.loader`.
        profile: as measured, after overrides and after contexts beyond the model's limit were dropped.
        dropped_contexts: context lengths (tokens) that the model cannot hold.
        weights: how they are stored, see `ModelInfo`; `None` in older sweeps.
        engine: of the baseline; `model_id`, `model_revision`, `architecture` and what follows it are what it says.
        other_engines: by name, what each further engine says.
        defaults: by engine, the id of the candidate that it is with nothing set; empty in older sweeps.
        device_name: of the device that was measured, on a cluster with several types of GPU of the first one.
        gpu_types: what differs by type where the sweep measures on several, the first one included.
        memory_note: what `peak_mib` means on that device.
        measured_notes: by engine, what its measuring has of its own.
        quality_note: why quality is not measured, if so.
        model_notes: `ModelInfo.notes`, what a reader of the figures must know of the model.
        left_out: (axis, value, reason) of what the engine knows and this sweep did not try.
        engine_pythons: by engine, the path of the Python of another environment in which its trials ran.
        search: how the space was searched; `None` in sweeps older than this field.
        budget_s: seconds that search and confirming might take, `None` without a bound.
        max_trials: launches of the search at most, `None` without a bound.
        confirm_rounds: rounds at most in which winner, rivals and baseline were measured again.
        exclusive: whether each trial had its machine to itself, as far as the sweep's other trials go.
        seed: of the search and of the confidence's draws.
        arguments: the `kvray tune` arguments that repeat this sweep, without `--resume` and without secrets.
        command: what they follow, e.g. `kvray submit tune`; `kvray batch` for a sweep of a batch, which has none.
        sent_models: of models that were sent with a job, by the path of their temporary copy how the user named them.
        code_check: of the code of the candidate that won by the sweep's own limits; `None` where it was not tried.
        attempts: all of them, the last one last; empty in sweeps of version 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest_version: int = MANIFEST_VERSION
    kvray_version: str
    run_id: str
    created_at: Moment
    model_id: str
    model_revision: str
    architecture: str
    loader: str | None = None
    weights: str | None = None
    engine: str
    other_engines: dict[str, EngineModel] = {}
    device: DeviceType
    device_name: str
    profile: WorkloadProfile
    dropped_contexts: tuple[int, ...] = ()
    baseline_id: str
    defaults: dict[str, str] = {}
    memory_note: str
    measured_notes: dict[str, str] = {}
    quality_note: str | None = None
    model_notes: tuple[str, ...] = ()
    trust_remote_code: bool = False
    allow_pickle: bool = False
    left_out: tuple[tuple[str, str, str], ...] = ()
    gpu_types: tuple[MeasuredType, ...] = ()
    engine_pythons: dict[str, str] = Field(default_factory=dict)
    search: str | None = None
    budget_s: float | None = None
    max_trials: int | None = None
    confirm_rounds: int = 0
    exclusive: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    arguments: tuple[str, ...] = ()
    command: str = "kvray tune"
    sent_models: dict[str, str] = Field(default_factory=dict)
    code_check: CodeCheck | None = None
    attempts: tuple[SweepAttempt, ...] = ()

    @property
    def batch_id(self) -> str | None:
        """The batch whose last attempt measured it; `None` where `kvray tune` did."""
        return batch_of_run(self.run_id) if self.command.endswith(" batch") else None

    @property
    def was_submitted(self) -> bool:
        """Whether its last attempt was a job of a cluster, which `kvray submit` had sent."""
        return self.command.startswith("kvray submit ")

    def code_check_of(self, candidate_id: str) -> CodeCheck | None:
        """What came of running the code of that candidate, held against the trials that are ranked."""
        check = self.code_check
        known = check is not None and (check.candidate_id, check.fingerprint_id) == (candidate_id, self.fingerprint_id)
        return check if known else None

    def on_type(self, gpu_type: str | None) -> SweepManifest:
        """The same with what differs on that type of GPU."""
        found = next((one for one in self.gpu_types if one.gpu_type == gpu_type), None)
        return self if found is None else self.model_copy(update=found.model_dump(exclude={"gpu_type"}))

    @property
    def engines(self) -> tuple[str, ...]:
        """Names of all engines, the baseline's first."""
        return (self.engine, *self.other_engines)

    def model_of(self, engine: str) -> EngineModel:
        """The model as `engine` has it; where the sweep does not know that, as the baseline's engine has it."""
        own = {name: getattr(self, name) for name in EngineModel.model_fields}
        return self.other_engines.get(engine) or EngineModel(**own)

    def shown_model(self, model_id: str | None = None) -> str:
        """How the user named the model, or another one of the sweep."""
        real = model_id or self.model_id
        return self.sent_models.get(real, real)

    @property
    def fingerprint_id(self) -> str | None:
        """Fingerprint of the last attempt: its trials are ranked."""
        return self.attempts[-1].fingerprint_id if self.attempts else None

    @property
    def first_fingerprint_id(self) -> str | None:
        """Fingerprint of the first attempt, and of records without one."""
        return self.attempts[0].fingerprint_id if self.attempts else None

    @property
    def trial_suffix(self) -> str:
        """Ends the trial ids of the last attempt, so that they never replace those of another fingerprint."""
        same = self.fingerprint_id == self.first_fingerprint_id
        return "" if same else f".{self.fingerprint_id}"

    @property
    def measured_since(self) -> dt.datetime:
        """When the first attempt with the last one's fingerprint began."""
        alike = [one.started_at for one in self.attempts if one.fingerprint_id == self.fingerprint_id]
        return min(alike, default=self.created_at)

    @property
    def session_started_at(self) -> dt.datetime:
        """When the last attempt began."""
        return self.attempts[-1].started_at if self.attempts else self.created_at

    @property
    def is_complete(self) -> bool | None:
        """Whether the last attempt came to its end; `None` where nothing tells."""
        return self.attempts[-1].ended_at is not None if self.attempts else None

    def judged_by(self, judging: Judging | None = None) -> SweepManifest:
        """The same with other weights and limits for its records; what its attempts asked stays.

        Of random weights no quality is judged, also where an older kvray has kept a limit for it.

        Raises:
            ProfileError: they are not allowed.
        """
        asked = override_profile(self.profile, judging=judging)
        if not self.model_id.startswith(RANDOM_PREFIX):
            return self.model_copy(update={"profile": asked})
        attempts = tuple(one.without_quality_limit() for one in self.attempts)
        return self.model_copy(update={"profile": asked.without_quality_limit(), "attempts": attempts})

    def ended(self, at: dt.datetime) -> SweepManifest:
        """The same after its last attempt came to its end."""
        *before, last = self.attempts
        return self.model_copy(update={"attempts": (*before, last.model_copy(update={"ended_at": at}))})
