"""Runs the trial queues of sweeps under Ray Tune, each trial on one slot, until every one has ended in a status."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvray.candidate import Candidate, DeviceType
from kvray.errors import SweepError
from kvray.sweep.admission import Admission
from kvray.sweep.batch import QueuedSweep, SweepBatch
from kvray.sweep.capacity import Capacity, Room
from kvray.sweep.session import RaySession, living_nodes


@dataclass(frozen=True, kw_only=True)
class SlotPlan:
    """How the machines are divided.

    Attributes:
        room: trials at the same time, and the GPUs that they share.
        gpus_per_slot: GPUs of a trial for each of its candidate's `parallelism`: 1, or 0 on a CPU.
        follows_nodes: whether machines that join or leave during the sweep change the room.
        threads: intra-op threads of each trial's process, `None` for the library's own choice.
    """

    room: Room
    cpus_per_slot: float
    gpus_per_slot: int
    threads: int | None
    follows_nodes: bool = False

    @property
    def slots(self) -> int:
        """Trials at the same time."""
        return self.room.slots

    def resources(self, candidate: Candidate) -> dict[str, float]:
        """What Ray reserves for a slot that measures `candidate`. Its CPUs are the same however many GPUs it holds."""
        return {"CPU": self.cpus_per_slot, "GPU": float(self.gpus_per_slot * candidate.parallelism)}

    def room_on(self, nodes: Sequence[Mapping[str, float]]) -> Room:
        """What `nodes` have room for, each trial on one of them."""
        slots = [_slots(node, self.cpus_per_slot, self.gpus_per_slot) for node in nodes]
        return _room(nodes, slots, self.gpus_per_slot)


def plan_slots(
    nodes: Sequence[Mapping[str, float]],
    *,
    device: DeviceType,
    slots: int | None,
    user_threads: int | None = None,
    quota_threads: int | None = None,
) -> SlotPlan:
    """Divide `nodes` (what Ray has on each machine) into slots; by default one per GPU, or one on a CPU.

    With one slot a trial has a whole machine, like a user's own process. With more, CPUs and threads are divided so
    that each slot has as many as possible. A slot never spans machines. A trial whose candidate is spread over several
    GPUs takes the place of as many slots.

    Args:
        user_threads: what the user has set for each trial's process, whatever is left for it.
        quota_threads: those that a CPU quota of this machine leaves room for; `None` without one, and on a cluster,
            where each slot looks for itself.

    Raises:
        SweepError: there is not enough for a single slot, or not for as many as asked.
    """
    cpus, gpus = _total(nodes, "CPU"), int(_total(nodes, "GPU"))
    if cpus < 1:
        raise SweepError("Ray offers no CPU to run a slot on.")
    gpus_per_slot = 1 if device is DeviceType.CUDA else 0
    most = sum(_slots(node, 1, gpus_per_slot) for node in nodes)
    if gpus_per_slot and most < 1:
        raise SweepError(f"The sweep needs 1 GPU, Ray offers {gpus}.", hint="Pass --device cpu to tune on the CPU.")
    wanted = slots or (most if gpus_per_slot else 1)
    if wanted > most:
        raise SweepError(
            f"{wanted} slots do not fit: Ray offers {cpus:g} CPUs and {gpus} GPUs.", hint=f"At most {most}."
        )
    share = 1
    while sum(_slots(node, share + 1, gpus_per_slot) for node in nodes) >= wanted:
        share += 1
    room = _room(nodes, [_slots(node, share, gpus_per_slot) for node in nodes], gpus_per_slot)
    return SlotPlan(
        room=replace(room, slots=wanted),
        cpus_per_slot=float(share),
        gpus_per_slot=gpus_per_slot,
        threads=user_threads or (quota_threads if wanted == 1 else share),
        follows_nodes=bool(gpus_per_slot) and slots is None,
    )


def _total(nodes: Sequence[Mapping[str, float]], resource: str) -> float:
    return sum(node.get(resource, 0.0) for node in nodes)


def _room(nodes: Sequence[Mapping[str, float]], slots: Sequence[int], gpus_per_slot: int) -> Room:
    """All GPUs of a node count that has CPUs for any slot."""
    gpus = [int(node.get("GPU", 0.0)) if held and gpus_per_slot else 0 for node, held in zip(nodes, slots, strict=True)]
    return Room(slots=sum(slots), gpus=sum(gpus), largest=max(gpus, default=0))


def _slots(node: Mapping[str, float], cpus: float, gpus: int) -> int:
    by_cpu = int(node.get("CPU", 0.0) // cpus)
    return min(by_cpu, int(node.get("GPU", 0.0) // gpus)) if gpus else by_cpu


def run_sweep(
    *sweeps: QueuedSweep,
    ray: RaySession,
    slots: SlotPlan,
    scratch: Path,
    before_launch: Callable[[], None] | None = None,
) -> None:
    """Run the trials of one sweep or of several on `ray`; returns when all are over.

    Args:
        sweeps: they share the slots, the largest first.
        scratch: temporary folder for Tune's own state, which nobody reads.
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
    batch = SweepBatch(sweeps)
    admission = Admission(batch, room=capacity)

    def check() -> None:
        ray.check_alive()
        capacity.check(admission.needed_gpus)

    def resources(config: dict[str, Any]) -> PlacementGroupFactory:
        return PlacementGroupFactory([slots.resources(config[TASK].spec.candidate)])

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
    try:
        tuner.fit()
    except (KeyboardInterrupt, SweepError):
        callback.break_off()
        raise
