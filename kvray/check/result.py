"""`CheckResult`: what a check found, as `check.json` keeps it. Every value is validated when a file is read.

`docs/schema/check.schema.json` is made from it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from kvray.analysis.comparison import ComparedMetric, Verdict
from kvray.candidate import DeviceType
from kvray.plan.plan import CandidateField, NotNegative, Revision
from kvray.record import short_model_name
from kvray.workload import Cell, WorkloadProfile

CHECK_VERSION: Literal[1] = 1

CheckedConfiguration = Annotated[CandidateField, WithJsonSchema({"type": "object"})]
Count = Annotated[int, Field(ge=0)]
LogValues = tuple[float | None, float | None, float | None]
"""Natural logarithms of TTFT (ms), decode throughput (tok/s) and peak memory (MiB); `None`: not measured."""


class CheckMode(enum.StrEnum):
    """What is compared with what."""

    RECORD = "record"
    """Now with what was recorded before, on the same machine."""
    A_B = "a_b"
    """Two sides, both measured now, in turn."""
    SUITE = "suite"
    """The micro-suite with its recorded baseline, or with another side."""


class OnInconclusive(enum.StrEnum):
    """What an INCONCLUSIVE check counts as for a CI that knows two colours."""

    PASS = "pass"
    FAIL = "fail"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Change(_Part):
    """A relative change (now / before - 1) with its 95 % interval; 0 is none, 0.1 is 10 % more."""

    value: float
    low: float
    high: float


class MetricVerdict(_Part):
    """One metric of one candidate.

    Attributes:
        before, now: geometric means over the cells, in the metric's unit; `None` where that was not measured.
        margin: 0.05 is 5 %; `None` where the metric is shown, not judged.
        is_better: whether it has improved, with the certainty that as many intervals as the check has need.
        more_rounds: about how many further rounds a verdict would take; `None` where there is one, or nobody can say.
    """

    metric: ComparedMetric
    before: float | None = None
    now: float | None = None
    change: Change | None = None
    margin: float | None = None
    verdict: Verdict | None = None
    is_better: bool = False
    more_rounds: Count | None = None


class CellVerdict(_Part):
    """One metric in one cell that is outside the margin by itself."""

    cell: Cell
    metric: ComparedMetric
    change: Change
    verdict: Verdict


class RanFacts(_Part):
    """What ran, as the measuring processes saw it, and how far the answers strayed from the reference (as `TrialRecord`
    has it). `None`: nobody saw that."""

    kernel_prefill: str | None = None
    kernel_decode: str | None = None
    cache_class: str | None = None
    cache_layers: str | None = None
    kv_dtype: str | None = None
    resolved: str | None = None
    threads: int | None = None
    kl_mean: float | None = None
    nll_delta: float | None = None


class ProcessSample(_Part):
    """What one fresh process measured.

    Attributes:
        round: number of its round, from 1; processes of both sides in one round ran one after the other.
        session: which sitting measured it.
        logs: a row for each of the side's cells.
        library_mib: MiB of the peak that pages of shared libraries' files take. They are not compared.
    """

    round: Count
    session: str
    disturbed: bool = False
    logs: tuple[LogValues, ...]
    library_mib: float | None = None


class MeasuredSide(_Part):
    """What one side measured of one candidate.

    Attributes:
        ran: what ran; `None` where no process came so far.
        failures: why processes failed, one sentence each.
    """

    cells: tuple[Cell, ...] = ()
    processes: tuple[ProcessSample, ...] = ()
    ran: RanFacts | None = None
    failures: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_every_cell(self) -> Self:
        if any(len(one.logs) != len(self.cells) for one in self.processes):
            raise ValueError("a process has not one row of logs for each cell")
        return self


class CheckedCandidate(_Part):
    """One candidate on both sides.

    Attributes:
        candidate: what was measured; `None` for what has none, such as a check of outputs.
        model_id: where it is not the model of the whole check, as in the micro-suite.
        reasons: why it fails whatever the numbers, e.g. `another kernel ran in decode: …`.
        differences: what differs between the sides: kernels, cache class, resolved settings, threads.
        cells: those that are outside the margin by themselves.
        rounds: how many rounds the verdict rests on; against a record, processes of the smaller side.
        measured_rounds: how many were measured; `None` in files of before.
        disturbed_rounds: how many of these do not count, because other programs disturbed them.
        before, now: what each side measured, so that this check can be the baseline of a later one.
    """

    label: str
    candidate: CheckedConfiguration | None = None
    model_id: str | None = None
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    metrics: tuple[MetricVerdict, ...] = ()
    cells: tuple[CellVerdict, ...] = ()
    rounds: Count = 0
    measured_rounds: Count | None = None
    disturbed_rounds: Count = 0
    failed_trials: Count = 0
    more_rounds: Count | None = None
    before: MeasuredSide = MeasuredSide()
    now: MeasuredSide = MeasuredSide()


class SideInfo(_Part):
    """One side of a check.

    Attributes:
        name: `baseline` and `now`, or `A` and `B`.
        python: path of its Python.
        variables: names of the environment variables that it sets; their values may be secret.
        speed_variables: environment variables that make libraries faster or slower, as they were set for it. A value of
            `None` was left out. `None` in place of all: they were not written down.
        speed_variables_list: number of the list that was looked at (see `store.speed_variables`).
        cpus: that a process could keep busy there.
        hardware: digest of machine and software (see `store.fingerprint.hardware_digest`).
        run_id: of its records.
        measured_at: when its measuring began.
    """

    name: str
    kvray_version: str | None = None
    engine_versions: dict[str, str] = {}
    python: str | None = None
    variables: tuple[str, ...] = ()
    speed_variables: dict[str, str | None] | None = None
    speed_variables_list: int | None = None
    host: str | None = None
    device_name: str | None = None
    driver_version: str | None = None
    cpus: int | None = None
    memory_gib: int | None = None
    hardware: str | None = None
    run_id: str | None = None
    measured_at: AwareDatetime | None = None


class CheckedModel(_Part):
    """The model as one engine has it, and the Python of another environment in which that engine runs."""

    model_id: Annotated[str, Field(min_length=1)]
    model_revision: Revision | None = None
    python: str | None = None


class CheckResult(_Part):
    """What a check found.

    Attributes:
        seconds: from its start to its end.
        baseline: what was named on the command line.
        models: by engine, see `CheckedModel`.
        trust_remote_code, allow_pickle: see `ModelRequest`.
        hardware: digest of machine and software that measured now.
        reference: the candidate that qualities are held against; `None` where quality was not measured.
        sides: before, then now.
        reasons: why the whole check fails or could not come to a verdict, one sentence each.
        differences: what differs between the sides for every candidate: versions, driver, device.
        more_rounds, more_seconds: what a verdict would take; `None` where there is one, or nobody can say.
        margins: of the metrics that are judged; 0.05 is 5 %.
        is_interrupted: whether the user ended it early.
        results: the folder with its records.
    """

    check_version: Literal[1] = CHECK_VERSION
    kvray_version: str
    started_at: AwareDatetime
    ended_at: AwareDatetime
    seconds: NotNegative
    mode: CheckMode
    baseline: str = ""
    model_id: str
    models: dict[str, CheckedModel] = {}
    trust_remote_code: bool = False
    allow_pickle: bool = False
    device: DeviceType
    device_name: str
    hardware: str | None = None
    profile: WorkloadProfile
    reference: CheckedConfiguration | None = None
    sides: tuple[SideInfo, SideInfo]
    candidates: tuple[CheckedCandidate, ...]
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    more_rounds: Count | None = None
    more_seconds: NotNegative | None = None
    margins: dict[ComparedMetric, float] = {}
    budget_s: NotNegative | None = None
    is_interrupted: bool = False
    results: str | None = None

    @property
    def shown_model(self) -> str:
        """The model's name for titles."""
        return short_model_name(self.model_id)

    @property
    def before(self) -> SideInfo:
        """The side that is compared with."""
        return self.sides[0]

    @property
    def now(self) -> SideInfo:
        """The side that is judged."""
        return self.sides[1]

    def to_dict(self) -> dict[str, Any]:
        """As `check.json` has it; `from_dict` reads it back equal."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The result that `to_dict` told of.

        Raises:
            pydantic.ValidationError: a value is missing, unknown or not allowed.
        """
        return cls.model_validate(data)

    def to_json(self) -> str:
        """The text of `check.json`."""
        return self.model_dump_json(indent=2) + "\n"
