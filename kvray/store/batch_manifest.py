"""`BatchManifest`: which sweeps a batch is made of, and how far each of them is; written anew whenever one ends."""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from kvray.record import short_model_name
from kvray.store.manifest import Moment
from kvray.workload import WorkloadProfile

BATCH_MANIFEST_VERSION = 1


class BatchStatus(enum.StrEnum):
    """How far a sweep of a batch is."""

    WAITING = "waiting"
    """Not begun: its turn has not come, the budget ended before, or the batch was interrupted."""
    MEASURING = "measuring"
    """Its trials run. In the manifest of a batch that was killed: broken off."""
    INTERRUPTED = "interrupted"
    """Begun, and broken off by the user. What was measured is kept."""
    OK = "ok"
    """Measured to its end, with a winner."""
    NO_WINNER = "no winner"
    """Measured to its end, and no candidate can be ranked."""
    FAILED = "failed"
    """It could not be measured: the model is not there, gated, too large or broken, Ray broke down, or its records
    could not be written to the results folder."""
    ERROR = "error"
    """Something unexpected ended it; a fault of kvray or of a library."""

    @property
    def is_measured(self) -> bool:
        """Whether nothing of it is left to measure: the records of one that is not do not decide yet."""
        return self in (BatchStatus.OK, BatchStatus.NO_WINNER)

    @property
    def is_failure(self) -> bool:
        """Whether it ended without a winner."""
        return self in (BatchStatus.NO_WINNER, BatchStatus.FAILED, BatchStatus.ERROR)


class BatchSweep(BaseModel):
    """One sweep of a batch: a model and a profile.

    Attributes:
        run_id: id of the sweep in the same results folder.
        profile: as asked; the sweep's own manifest has what the model can hold of it.
        sent_from: how the user named a model that was sent with a job; `None` for any other.
        settings: what the batch file asks of this sweep beside model and profile, defaults included.
        reason: why it failed, one line; `None` where it did not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    model_id: Annotated[str, Field(min_length=1)]
    sent_from: str | None = None
    profile: WorkloadProfile
    settings: dict[str, Any] = {}
    status: BatchStatus = BatchStatus.WAITING
    reason: str | None = None

    @property
    def shown_model(self) -> str:
        """How the user named the model."""
        return self.sent_from or self.model_id

    @property
    def title(self) -> str:
        """For lines: model and profile."""
        return f"{short_model_name(self.shown_model)} · {self.profile.name}"


class BatchAttempt(BaseModel):
    """One `kvray batch`: the first one, or one with `--resume`.

    Attributes:
        ended_at: when it came to its end; `None` while it runs, and for ever where it was interrupted or killed.
        budget_s: seconds that it might take; `None` without a bound.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    started_at: Moment
    ended_at: Moment | None = None
    kvray_version: str
    budget_s: float | None = None


class BatchManifest(BaseModel):
    """Lies in `batches/<batch_id>.json`.

    Attributes:
        created_at: when the first attempt began.
        sweeps: in the order of the batch file.
        attempts: all of them, the last one last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_version: int = BATCH_MANIFEST_VERSION
    batch_id: str
    created_at: Moment
    sweeps: Annotated[tuple[BatchSweep, ...], Field(min_length=1)]
    attempts: Annotated[tuple[BatchAttempt, ...], Field(min_length=1)]

    @property
    def is_complete(self) -> bool:
        """Whether the last attempt came to its end."""
        return self.attempts[-1].ended_at is not None

    @property
    def has_ended_sweeps_only(self) -> bool:
        """Whether no sweep of this attempt has trials left, those that failed included."""
        return all(one.status.is_measured or one.status.is_failure for one in self.sweeps)

    def having(self, sweep: BatchSweep) -> BatchManifest:
        """The same with `sweep` in place of the one of its run id."""
        sweeps = tuple(sweep if one.run_id == sweep.run_id else one for one in self.sweeps)
        return self.model_copy(update={"sweeps": sweeps})

    def ended(self, at: Moment) -> BatchManifest:
        """The same after its last attempt came to its end."""
        *before, last = self.attempts
        return self.model_copy(update={"attempts": (*before, last.model_copy(update={"ended_at": at}))})

    def continued(self, attempt: BatchAttempt, *, again: Collection[str] = ()) -> BatchManifest:
        """The same with a further attempt, for which everything waits that is not measured, or that is measured `again`
        (run ids)."""
        waits = {"status": BatchStatus.WAITING, "reason": None}
        sweeps = tuple(
            one if one.status.is_measured and one.run_id not in again else one.model_copy(update=waits)
            for one in self.sweeps
        )
        return self.model_copy(update={"sweeps": sweeps, "attempts": (*self.attempts, attempt)})
