"""Runs the trial queues of sweeps under Ray Tune, each trial on one slot, until every one has ended in a status."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kvray.environment import changed_environment
from kvray.errors import SweepError
from kvray.sweep.admission import Admission
from kvray.sweep.batch import Newcomers, QueuedSweep, SweepBatch
from kvray.sweep.capacity import Capacity, Room
from kvray.sweep.lanes import Lane, Lanes
from kvray.sweep.lean_ray import lean_tune
from kvray.sweep.session import RaySession, living_nodes
from kvray.sweep.slot_plan import SlotPlan
from kvray.sweep.trial_task import TrialTask

NODE_ID = "ray.io/node-id"
"""A label that Ray gives to every node."""


def run_sweep(
    *sweeps: QueuedSweep,
    ray: RaySession,
    slots: SlotPlan,
    scratch: Path,
    further_slots: Sequence[SlotPlan] = (),
    newcomers: Callable[[str | None], Newcomers] | None = None,
    before_launch: Callable[[], None] | None = None,
) -> None:
    """Run the trials of one sweep or of several on `ray`; returns when all are over.

    Args:
        sweeps: those of one `gpu_type` share its slots, the largest first.
        further_slots: slots of further types of GPU, used at the same time.
        scratch: temporary folder for Tune's own state, which nobody reads.
        newcomers: for a type of GPU, the sweeps that join while these run.
        before_launch: called before a trial starts while no other one runs; it may take its time.

    Raises:
        KeyboardInterrupt: the user stopped it; observers have heard of all trials that ended before.
        SweepError: Ray broke down, or no machine has room for a trial any more.
    """
    # Importing Ray takes a second, which a dry run and a refused model do without.
    from ray import tune
    from ray.exceptions import RayError
    from ray.tune.execution.placement_groups import PlacementGroupFactory

    from kvray.sweep.progress import ObserverCallback
    from kvray.sweep.scheduler import HalvingPerSweep
    from kvray.sweep.searcher import BatchSearcher
    from kvray.sweep.slot import TASK, Slot

    plans = {one.gpu_type: one for one in (slots, *further_slots)}
    joining = {key: None if newcomers is None else newcomers(key) for key in plans}
    lanes = Lanes({key: _lane(plan, sweeps, joining[key], ray) for key, plan in plans.items()})

    def check() -> None:
        ray.check_alive()
        lanes.check_room()

    def resources(config: dict[str, Any]) -> PlacementGroupFactory:
        task: TrialTask = config[TASK]
        held = plans[task.spec.gpu_type].resources(task.largest)
        chosen = {} if task.node is None else {"bundle_label_selector": [{NODE_ID: task.node}]}
        return PlacementGroupFactory([held], **chosen)

    callback = ObserverCallback(lanes, check_alive=check)
    tuner = tune.Tuner(
        # Tune reuses an actor for trials of the same resources, and lets it go where the next one needs others.
        tune.with_resources(Slot, resources),
        tune_config=tune.TuneConfig(
            search_alg=BatchSearcher(lanes, before_launch=before_launch),
            scheduler=HalvingPerSweep(lanes),
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
    # By default Tune starts one slot after the other.
    try:
        pending = {"TUNE_MAX_PENDING_TRIALS_PG": str(sum(plan.slots for plan in plans.values()))}
        with changed_environment(pending), lean_tune():
            tuner.fit()
    except (KeyboardInterrupt, SweepError):
        callback.break_off()
        raise
    except RayError:  # Tune's own end fails where the servers are gone
        callback.break_off()
        ray.look_once_more()
        raise


def _lane(plan: SlotPlan, sweeps: Sequence[QueuedSweep], newcomers: Newcomers | None, ray: RaySession) -> Lane:
    # A private Ray's one machine stays: while it measures nothing is asked of it.
    room = (lambda: plan.room) if ray.is_private else (lambda: _room_now(plan, ray))
    capacity = Capacity(plan.room, room=room, follows_nodes=plan.follows_nodes, gpu_type=plan.gpu_type)
    batch = SweepBatch([one for one in sweeps if one.gpu_type == plan.gpu_type], newcomers)
    admission = Admission(batch, room=capacity, most_gpus=lambda: batch.most_gpus)
    return Lane(batch=batch, admission=admission, capacity=capacity)


def _room_now(plan: SlotPlan, ray: RaySession) -> Room:
    ray.wait_while_silent()
    nodes = living_nodes()
    return plan.room_on(list(nodes.values()), list(nodes))
