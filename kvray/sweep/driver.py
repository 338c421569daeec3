"""Runs a sweep's course under Ray Tune, each trial on one slot, until every one has ended in a status."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from kvray.candidate import DeviceType
from kvray.errors import SweepError
from kvray.sweep.course import Course
from kvray.sweep.progress import ObserverCallback, SweepObserver
from kvray.sweep.scheduler import SparingHalving
from kvray.sweep.searcher import CourseSearcher
from kvray.sweep.slot import Slot


@dataclass(frozen=True, kw_only=True)
class SlotPlan:
    """How the machine is divided.

    Attributes:
        slots: trials at the same time.
        threads: intra-op threads of each trial's process, `None` for the library's own choice.
    """

    slots: int
    cpus_per_slot: float
    gpus_per_slot: int
    threads: int | None

    @property
    def resources(self) -> dict[str, float]:
        """What Ray reserves for a slot."""
        return {"CPU": self.cpus_per_slot, "GPU": float(self.gpus_per_slot)}


def plan_slots(
    available: Mapping[str, float],
    *,
    device: DeviceType,
    slots: int | None,
    gpus_per_trial: int = 1,
    user_threads: int | None = None,
) -> SlotPlan:
    """Divide `available` (Ray's cluster resources) into slots; by default one per GPU, or one on a CPU.

    With one slot a trial has the whole machine, like a user's own process. With more, threads are divided evenly.

    Raises:
        SweepError: there is not enough for a single slot, or not for as many as asked.
    """
    cpus, gpus = available.get("CPU", 0.0), int(available.get("GPU", 0.0))
    if cpus < 1:
        raise SweepError("Ray offers no CPU to run a slot on.")
    if device is DeviceType.CUDA:
        most = gpus // gpus_per_trial
        if most < 1:
            raise SweepError(
                f"The sweep needs {gpus_per_trial} GPU, Ray offers {gpus}.",
                hint="Pass --device cpu to tune on the CPU.",
            )
        wanted = slots or most
    else:
        most = int(cpus)
        wanted = slots or 1
    if wanted > most:
        raise SweepError(
            f"{wanted} slots do not fit: Ray offers {cpus:g} CPUs and {gpus} GPUs.", hint=f"At most {most}."
        )
    share = math.floor(cpus / wanted)
    threads = user_threads or (None if wanted == 1 else max(1, share))
    return SlotPlan(
        slots=wanted,
        cpus_per_slot=float(max(1, share)),
        gpus_per_slot=gpus_per_trial if device is DeviceType.CUDA else 0,
        threads=threads,
    )


def run_sweep(course: Course, *, slots: SlotPlan, observer: SweepObserver) -> None:
    """Run what `course` orders on the Ray that is connected; returns when it is over.

    Raises:
        KeyboardInterrupt: the user stopped it; `observer` has heard of all trials that ended before.
    """
    from ray import tune

    with tempfile.TemporaryDirectory(prefix="kvray-tune-") as storage:
        tuner = tune.Tuner(
            tune.with_resources(Slot, slots.resources),
            tune_config=tune.TuneConfig(
                search_alg=CourseSearcher(course),
                scheduler=SparingHalving(course),
                num_samples=-1,
                max_concurrent_trials=slots.slots,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=storage,
                verbose=0,
                callbacks=[ObserverCallback(observer)],
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()
