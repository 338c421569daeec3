"""A sweep of a batch that measures, and how it is written up when it has ended."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from kvray.errors import SweepError
from kvray.store.batch_manifest import BatchStatus, BatchSweep
from kvray.tuning.code_run import CodeRunner
from kvray.tuning.outcome import broken_off, no_winner, warn_of_disturbance, write_up
from kvray.tuning.prepared import PreparedSweep
from kvray.tuning.ready_sweep import ReadySweep


@dataclass(frozen=True, kw_only=True)
class BegunSweep:
    """A sweep that measures.

    Attributes:
        claims: are let go when it is written up.
        watching: ends with its last trial.
    """

    sweep: BatchSweep
    ready: ReadySweep
    prepared: PreparedSweep
    claims: ExitStack
    watching: ExitStack


def written_up(begun: BegunSweep, error: Exception | None, *, interrupted: bool) -> tuple[BatchStatus, str | None]:
    """Write plan and reports, while others may measure; returns the sweep's status, and the reason for it.

    Args:
        error: what ended the sweep before its time; it is raised when what was measured is written.
    """
    prepared, config = begun.prepared, begun.ready.config
    with begun.claims:
        if error is None and not interrupted:
            prepared.end()
        first, *others = begun.ready.adapters
        excuse = "the sweep was interrupted" if interrupted else "--no-check-snippet was given"
        runner = CodeRunner(first, others=tuple(others), excuse=excuse)
        # To run the code now would disturb the trials of other sweeps: that waits for their end.
        checks_later = config.check_snippet and not interrupted
        result = write_up(prepared.keeper, config.profile, (lambda _: None) if checks_later else runner.check)
        if prepared.keeper.has_moved:
            raise prepared.keeper.moved()
        if isinstance(error, SweepError):
            raise broken_off(error, prepared.keeper, hint="The rest is measured when the batch is resumed.")
        if error is not None:
            raise error
        warn_of_disturbance(result, name=begun.sweep.title)
    if interrupted:
        return BatchStatus.INTERRUPTED, None
    if result.analysis.ranking.entries:
        return BatchStatus.OK, None
    return BatchStatus.NO_WINNER, no_winner(result).message
