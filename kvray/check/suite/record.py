"""`SuiteRecord`: what `kvray suite run` measured, as its file keeps it. Every value is validated on reading."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from kvray.candidate import DeviceType
from kvray.check.check_file import parse_json, read_text, write_output
from kvray.check.result import CheckedConfiguration, MeasuredSide, SideInfo
from kvray.check.suite.cases import SUITE_VERSION
from kvray.errors import ResultsError, describe_problems
from kvray.files.documents import shown_document
from kvray.files.remote import is_uri
from kvray.plan.plan import NotNegative
from kvray.record import TrialStatus

RECORD_VERSION: Literal[1] = 1
_MOST_BYTES = 16 << 20
_RUN_IT = "kvray suite run --output FILE writes one."


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Outputs(_Part):
    """What a case answered.

    Attributes:
        tokens: the first tokens that were generated, of the first and the last sequence of the batch.
        text: digest of the text that was fed.
        logs: log-probabilities (nats) of that text's last tokens, for the same sequences; each is the shortest decimal
            that reads back as the very float32. `None` stands for a value that is not finite.
        note: why there are no log-probabilities.
        repeats: whether every process of the case answered the same, bit by bit; `None`: there was but one.
    """

    tokens: tuple[tuple[int, ...], ...] = ()
    text: str | None = None
    logs: tuple[tuple[float | None, ...], ...] = ()
    note: str | None = None
    repeats: bool | None = None


class RecordedCase(_Part):
    """What one case came to.

    Attributes:
        model: digest of the model's weights.
        status: how its first process ended.
        message: why it did not work, in the engine's words.
        versions: of the engine's libraries, by name.
        kv_cache_mib: what the cache holds after the answer.
        measured: times and memory of each fresh process, and what ran.
    """

    name: Annotated[str, Field(min_length=1)]
    model: str
    candidate: CheckedConfiguration
    status: TrialStatus
    message: str | None = None
    versions: dict[str, str] = {}
    kv_cache_mib: NotNegative | None = None
    outputs: Outputs = Outputs()
    measured: MeasuredSide = MeasuredSide()

    @property
    def works(self) -> bool:
        """Whether it was measured."""
        return self.status is TrialStatus.OK


class SkippedCase(_Part):
    """A case that this machine cannot run, and why."""

    name: Annotated[str, Field(min_length=1)]
    reason: str


class SuiteRecord(_Part):
    """What `kvray suite run` measured.

    Attributes:
        seconds: from its start to its end.
        side: who measured, with what, and where.
        rounds: fresh processes of each case.
        cases: where it was interrupted, those that were measured at least once.
        is_interrupted: whether the user ended it early.
    """

    suite_record_version: Literal[1] = RECORD_VERSION
    suite_version: int
    kvray_version: str
    measured_at: AwareDatetime
    seconds: NotNegative
    device: DeviceType
    side: SideInfo
    rounds: Annotated[int, Field(ge=1)]
    cases: tuple[RecordedCase, ...]
    skipped: tuple[SkippedCase, ...] = ()
    is_interrupted: bool = False

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        names = self.names
        if len(set(names)) != len(names):
            raise ValueError("a case is there twice")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the cases that it knows, measured or skipped."""
        return (*(one.name for one in self.cases), *(one.name for one in self.skipped))

    def case(self, name: str) -> RecordedCase | None:
        """The case called `name`; `None`: it was not measured."""
        return next((one for one in self.cases if one.name == name), None)


def unfinished_place(path: str) -> str:
    """Where a record goes that was interrupted, so that it replaces no whole one: `suite.unfinished.json`. A URI keeps
    its options."""
    place, mark, options = path.partition("?") if is_uri(path) else (path, "", "")
    suffix = PurePosixPath(place).suffix
    return f"{place.removesuffix(suffix)}.unfinished{suffix}{mark}{options}"


def write_record(record: SuiteRecord, path: str | Path) -> None:
    """Write `record` to `path`, which may be a URI, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_output(path, record_text(record))


def record_text(record: SuiteRecord) -> str:
    """The file's text, with a line for each case, so that a change of one is a change of one line."""
    data: dict[str, Any] = {
        "suite_record_version": record.suite_record_version,
        **record.model_dump(mode="json", exclude_defaults=True),
    }
    cases = ",\n".join(map(_dumped, data.pop("cases")))
    skipped = ",\n".join(map(_dumped, data.pop("skipped", ())))
    return f'{_dumped(data)[:-1]},\n"cases": [\n{cases}\n],\n"skipped": [\n{skipped}\n]}}\n'


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def read_record(path: str | Path) -> SuiteRecord:
    """The record in the file at `path`, which may be a URI.

    Raises:
        ResultsError: it is missing, no record of the suite, damaged, or of another version of the suite.
    """
    shown = shown_document(path)
    data = parse_json(read_text(path, most_bytes=_MOST_BYTES, hint=_RUN_IT), f"{shown!r} is not a record of the suite")
    _check_versions(data, shown)
    try:
        return SuiteRecord.model_validate(data)
    except ValidationError as error:
        raise ResultsError(f"{shown!r} is not a valid record of the suite: {describe_problems(error)}.") from error


def _check_versions(data: object, shown: str) -> None:
    known = {"suite_record_version": RECORD_VERSION, "suite_version": SUITE_VERSION}
    if not isinstance(data, dict) or not known.keys() <= data.keys():
        raise ResultsError(f"{shown!r} is not a record of the suite: it has no suite_version.", hint=_RUN_IT)
    for what, version in known.items():
        if data[what] != version or isinstance(data[what], bool):
            raise ResultsError(
                f"{shown!r} has {what} {data[what]!r}, and this kvray has {version}: its cases are not comparable.",
                hint="Run the suite again, or take the kvray that wrote the file.",
            )
