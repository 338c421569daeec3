"""Runs the trial queues of sweeps under Ray Tune, each trial on one slot, until every one has ended in a status."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvray.environment import changed_environment
from kvray.errors import SweepError
from kvray.sweep.admission import Admission
from kvray.sweep.batch import Newcomers, QueuedSweep, SweepBatch
from kvray.sweep.capacity import Capacity
from kvray.sweep.session import RaySession, living_nodes
from kvray.sweep.slot_plan import SlotPlan


def run_sweep(
    *sweeps: QueuedSweep,
    ray: RaySession,
    slots: SlotPlan,
    scratch: Path,
    newcomers: Newcomers | None = None,
    before_launch: Callable[[], None] | None = None,
) -> None:
    """Run the trials of one sweep or of several on `ray`; returns when all are over.

    Args:
        sweeps: they share the slots, the largest first.
        scratch: temporary folder for Tune's own state, which nobody reads.
        newcomers: sweeps that join while these run.
        before_launch: called before a trial starts while no other one runs; it may take its time.

    Raises:
        KeyboardInterrupt: the user stopped it; observers have heard of all trials that ended before.
        SweepError: Ray broke down, or no machine has room for a trial any more.
    """
    # Importing Ray takes a second, which a dry run and a refused model do without.
    from ray import tune
    from ray.tune.execution.placement_groups import PlacementGroupFactory

    from kvray.sweep.progress import ObserverCallback
    from kvray.sweep.scheduler import HalvingPerSweep
    from kvray.sweep.searcher import BatchSearcher
    from kvray.sweep.slot import TASK, Slot

    # A private Ray's one machine stays: while it measures nothing is asked of it.
    room = (lambda: slots.room) if ray.is_private else (lambda: slots.room_on(living_nodes()))
    capacity = Capacity(slots.room, room=room, follows_nodes=slots.follows_nodes)
    batch = SweepBatch(sweeps, newcomers)
    admission = Admission(batch, room=capacity)

    def check() -> None:
        ray.check_alive()
        capacity.check(admission.needed_gpus)

    def resources(config: dict[str, Any]) -> PlacementGroupFactory:
        return PlacementGroupFactory([slots.resources(config[TASK].largest)])

    callback = ObserverCallback(batch, check_alive=check)
    tuner = tune.Tuner(
        # Tune reuses an actor for trials of the same resources, and lets it go where the next one needs others.
        tune.with_resources(Slot, resources),
        tune_config=tune.TuneConfig(
            search_alg=BatchSearcher(batch, admission=admission, before_launch=before_launch),
            scheduler=HalvingPerSweep(batch),
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            verbose=0,
            callbacks=[callback],
            # A lost slot comes back through the queue, as a trial of Tune's own: Tune would put it at the end of its
            # queue, and keep the rungs of the lost attempt.
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    # By default Tune starts one slot after the other. When a trial finds a slot whose own trial has ended, Tune cancels
    # the start of another: with short trials the further slots would never come up.
    try:
        with changed_environment({"TUNE_MAX_PENDING_TRIALS_PG": str(slots.slots)}):
            tuner.fit()
    except (KeyboardInterrupt, SweepError):
        callback.break_off()
        raise
