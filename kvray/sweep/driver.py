"""Runs a sweep's trial queue under Ray Tune, each trial on one slot, until every one has ended in a status."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvray.candidate import DeviceType
from kvray.errors import SweepError
from kvray.sweep.capacity import Capacity
from kvray.sweep.observer import SweepObserver
from kvray.sweep.session import RaySession, living_nodes
from kvray.sweep.trial_queue import TrialQueue


@dataclass(frozen=True, kw_only=True)
class SlotPlan:
    """How the machines are divided.

    Attributes:
        slots: trials at the same time.
        follows_nodes: whether machines that join or leave during the sweep change that.
        threads: intra-op threads of each trial's process, `None` for the library's own choice.
    """

    slots: int
    cpus_per_slot: float
    gpus_per_slot: int
    threads: int | None
    follows_nodes: bool = False

    @property
    def resources(self) -> dict[str, float]:
        """What Ray reserves for a slot."""
        return {"CPU": self.cpus_per_slot, "GPU": float(self.gpus_per_slot)}

    def room(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """Slots that `nodes` have room for, each on one of them."""
        return sum(_room(node, self.cpus_per_slot, self.gpus_per_slot) for node in nodes)


def plan_slots(
    nodes: Sequence[Mapping[str, float]],
    *,
    device: DeviceType,
    slots: int | None,
    gpus_per_trial: int = 1,
    user_threads: int | None = None,
    quota_threads: int | None = None,
) -> SlotPlan:
    """Divide `nodes` (what Ray has on each machine) into slots; by default one per GPU, or one on a CPU.

    With one slot a trial has a whole machine, like a user's own process. With more, CPUs and threads are divided so
    that each slot has as many as possible. A slot never spans machines.

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
    gpus_per_slot = gpus_per_trial if device is DeviceType.CUDA else 0
    most = sum(_room(node, 1, gpus_per_slot) for node in nodes)
    if gpus_per_slot and most < 1:
        raise SweepError(
            f"The sweep needs {gpus_per_trial} GPU, Ray offers {gpus}.", hint="Pass --device cpu to tune on the CPU."
        )
    wanted = slots or (most if gpus_per_slot else 1)
    if wanted > most:
        raise SweepError(
            f"{wanted} slots do not fit: Ray offers {cpus:g} CPUs and {gpus} GPUs.", hint=f"At most {most}."
        )
    share = 1
    while sum(_room(node, share + 1, gpus_per_slot) for node in nodes) >= wanted:
        share += 1
    return SlotPlan(
        slots=wanted,
        cpus_per_slot=float(share),
        gpus_per_slot=gpus_per_slot,
        threads=user_threads or (quota_threads if wanted == 1 else share),
        follows_nodes=bool(gpus_per_slot) and slots is None,
    )


def _total(nodes: Sequence[Mapping[str, float]], resource: str) -> float:
    return sum(node.get(resource, 0.0) for node in nodes)


def _room(node: Mapping[str, float], cpus: float, gpus: int) -> int:
    by_cpu = int(node.get("CPU", 0.0) // cpus)
    return min(by_cpu, int(node.get("GPU", 0.0) // gpus)) if gpus else by_cpu


def run_sweep(
    queue: TrialQueue,
    *,
    ray: RaySession,
    slots: SlotPlan,
    observer: SweepObserver,
    scratch: Path,
    before_launch: Callable[[], None] | None = None,
) -> None:
    """Run the trials of `queue` on `ray`; returns when it is over.

    Args:
        scratch: temporary folder for Tune's own state, which nobody reads.
        before_launch: called before a trial starts while no other one runs; it may take its time.

    Raises:
        KeyboardInterrupt: the user stopped it; `observer` has heard of all trials that ended before.
        SweepError: Ray broke down, or no machine has room for a trial any more.
    """
    # Importing Ray takes a second, which a dry run and a refused model do without.
    from ray import tune

    from kvray.sweep.progress import ObserverCallback
    from kvray.sweep.scheduler import SparingHalving
    from kvray.sweep.searcher import QueueSearcher
    from kvray.sweep.slot import Slot

    # A private Ray's one machine stays: while it measures nothing is asked of it.
    room = (lambda: slots.slots) if ray.is_private else (lambda: slots.room(living_nodes()))
    capacity = Capacity(slots.slots, room=room, follows_nodes=slots.follows_nodes)

    def check() -> None:
        ray.check_alive()
        capacity.check()

    callback = ObserverCallback(observer, outlook=queue.outlook, check_alive=check)
    tuner = tune.Tuner(
        tune.with_resources(Slot, slots.resources),
        tune_config=tune.TuneConfig(
            search_alg=QueueSearcher(queue, capacity=capacity, before_launch=before_launch),
            scheduler=SparingHalving(queue),
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
