"""`BatchRetry`: what a resumed batch measures again although it was measured to its end."""

from __future__ import annotations

from dataclasses import dataclass

from kvray.analysis.disturbed import resting_on_disturbed
from kvray.config import DISTURBED
from kvray.record import TrialStatus
from kvray.store.batch_manifest import BatchStatus, BatchSweep
from kvray.store.parquet import ResultsStore
from kvray.store.resuming import current_results

FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class BatchRetry:
    """What `kvray batch --resume ID --retry LIST` asks for. Sweeps that are not measured to their end go on anyway.

    Attributes:
        failed: whether sweeps without a winner are measured again, with all of their trials that failed.
        statuses: failures that are measured again in every sweep, those with a winner included.
        disturbed: whether candidates whose figures rest on disturbed runs alone are measured again, in every sweep.
    """

    failed: bool = False
    statuses: tuple[TrialStatus, ...] = ()
    disturbed: bool = False

    def __str__(self) -> str:
        """As it is typed; empty where nothing is asked for."""
        names = (*([FAILED] if self.failed else []), *self.statuses, *([DISTURBED] if self.disturbed else []))
        return ",".join(names)

    def takes(self, store: ResultsStore, sweep: BatchSweep) -> bool:
        """Whether something of `sweep`, which was measured to its end, is measured again.

        Raises:
            ResultsError: its records cannot be read.
        """
        if self.failed and sweep.status is BatchStatus.NO_WINNER:
            return True
        if not (self.statuses or self.disturbed):
            return False
        results, _ = current_results(store.read_manifest(sweep.run_id), store.read(sweep.run_id))
        has_failed = any(one.record.status in self.statuses for one in results)
        return has_failed or (self.disturbed and bool(resting_on_disturbed(results)))

    def statuses_of(self, sweep: BatchSweep) -> tuple[TrialStatus, ...]:
        """The failures that are measured again in `sweep`: one without a winner, or whose retry was broken off before
        its turn, begins anew with `failed`."""
        every = self.failed and (sweep.status.is_failure or sweep.status is BatchStatus.WAITING)
        return TrialStatus.failures() if every else self.statuses
