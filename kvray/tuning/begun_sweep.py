"""A sweep of a batch that measures: how it begins, and how it is written up when it has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from kvray.errors import SweepError
from kvray.store.batch_manifest import BatchStatus, BatchSweep
from kvray.store.claim import claimed_sweep
from kvray.store.parquet import ResultsStore
from kvray.sweep.metrics import exports_metrics
from kvray.sweep.session import RaySession
from kvray.sweep.slot_plan import SlotPlan
from kvray.tuning.batch_budget import BatchBudget
from kvray.tuning.code_run import CodeRunner
from kvray.tuning.each_type import each_type
from kvray.tuning.observer import SearchObserver
from kvray.tuning.outcome import broken_off, no_winner, warn_of_disturbance, write_up
from kvray.tuning.prepared import PreparedSweep, prepare_sweep
from kvray.tuning.ready_sweep import ReadySweep
from kvray.tuning.share import share_of
from kvray.tuning.watching import MetricsObserver

SweepView = Callable[[BatchSweep], AbstractContextManager[SearchObserver]]
"""Makes the observer of one sweep; its context ends with the sweep's last trial."""


@dataclass(frozen=True, kw_only=True)
class BatchPlace:
    """Where trials of a batch run, as long as its Ray lives.

    Attributes:
        slots: by type of GPU.
    """

    ray: RaySession
    folder: Path
    slots: Mapping[str | None, SlotPlan]


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


def begin_sweep(
    sweep: BatchSweep,
    ready: Sequence[ReadySweep],
    place: BatchPlace,
    *,
    store: ResultsStore,
    budget: BatchBudget,
    view: SweepView | None = None,
) -> BegunSweep:
    """Be the one who measures the sweep, and write its manifest. Its clock is what `budget` charges it for.

    Args:
        ready: for each type of GPU; of types that `place` does not have nothing is measured.

    Raises:
        KvrayError: another process measures it, its earlier records cannot be compared, or nothing can be written.
    """
    given, run_id = ready[0].config, sweep.run_id
    own_s = given.budget_s
    share_s = budget.left_s(run_id, own_s)
    config = given if share_s is None else given.model_copy(update={"budget_s": share_s})
    placed = [(one, place.slots[one.gpu_type]) for one in ready if one.gpu_type in place.slots]
    scratch = place.folder / run_id
    scratch.mkdir(exist_ok=True)
    with ExitStack() as claims, ExitStack() as watching:
        views = [] if view is None else [watching.enter_context(view(sweep))]
        shares = each_type(placed, lambda one: share_of(*one))
        shares = [replace(one, observers=[*views, *_metrics(place, one.slots, watching)]) for one in shares]
        prepared = prepare_sweep(
            store,
            config,
            shares,
            claim=claims.enter_context(claimed_sweep(store, run_id)),
            run_id=run_id,
            of_batch=True,
            scratch=scratch,
            started_s=0.0,
            clock=lambda: (share_s or 0.0) - (budget.left_s(run_id, own_s) or 0.0),
            pythons={name: python for one in ready for name, python in one.pythons.items()},
        )
        return BegunSweep(
            sweep=sweep, ready=ready[0], prepared=prepared, claims=claims.pop_all(), watching=watching.pop_all()
        )


def _metrics(place: BatchPlace, slots: SlotPlan, until: ExitStack) -> list[SearchObserver]:
    """Ray's metrics, on a cluster that has them."""
    if not exports_metrics(place.ray):
        return []
    return [until.enter_context(MetricsObserver(gpus_per_slot=slots.gpus_per_slot, gpu_type=slots.gpu_type))]


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
