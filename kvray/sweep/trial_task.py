"""`TrialTask`: what a slot is given for one trial, or for a confirming round. Imports no Ray."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import EngineAdapter
from kvray.engines.interpreter import EnginePython
from kvray.record import gpus_of
from kvray.trial.spec import TrialSpec

MOST_ATTEMPTS = 3
"""At a trial whose slot or node dies under it: it runs again twice."""


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """What a slot is given for one trial.

    Attributes:
        python: in which the trial's process runs; `None`: kvray's own.
        threads: intra-op threads for the measurement process; `None` leaves the choice to its library, as in a user's
            own process, unless a CPU quota where the slot runs leaves room for fewer.
        scratch: folder for logs of processes, which the driver deletes; where it does not exist (another machine), the
            slot makes one of its own.
        libraries: on a cluster, those of all engines of the sweep: their versions are part of the hardware fingerprint
            that the slot puts into the record. `None` on this machine, where nothing has to be told apart.
        attempt: 1, or higher where the slots of earlier attempts at this very trial died.
        node: Ray's id of the node that it runs on; `None` leaves the choice to Ray.
        then: trials that run after this one in the same slot, and so on the same device, each in a fresh process: the
            rest of its confirming round.
        unless_on: devices, as the column `device_uuid` has them, on which this very trial was run in an earlier attempt
            at the sweep. A slot that comes to it on one of them leaves it out.
    """

    spec: TrialSpec
    adapter: EngineAdapter
    python: EnginePython | None = None
    threads: int | None = None
    scratch: Path | None = None
    libraries: tuple[str, ...] | None = None
    attempt: int = 1
    node: str | None = None
    then: tuple[TrialTask, ...] = ()
    unless_on: tuple[str, ...] = ()

    def following_on(self, device_uuid: str | None) -> TrialTask | None:
        """What is left once this trial has ended in a slot that holds this device; `None` after the last one."""
        held = gpus_of(device_uuid)
        for place, task in enumerate(self.then):
            if not any(gpus_of(one) <= held for one in task.unless_on):
                return replace(task, then=self.then[place + 1 :])
        return None

    def after(self, left: TrialTask | None) -> tuple[TrialTask, ...]:
        """The trials that the slot leaves out between this one and what is left."""
        return self.then[: len(self.then) - (0 if left is None else 1 + len(left.then))]

    def left_from(self, trial_id: str) -> TrialTask:
        """What is left when the slot goes on with that trial."""
        place = [task.spec.trial_id for task in self.then].index(trial_id)
        return replace(self.then[place], then=self.then[place + 1 :])

    @property
    def largest(self) -> Candidate:
        """The candidate, of all that run in the slot, that is spread over most GPUs."""
        return max((task.spec.candidate for task in (self, *self.then)), key=lambda one: one.parallelism)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself, as nothing in it changes: Tune copies the config of every trial, several times over."""
        return self

    def __str__(self) -> str:
        """Short: Tune keeps the text of every trial's config as that trial's name."""
        return self.spec.trial_id

    @property
    def gpus(self) -> int:
        """GPUs that the slot holds meanwhile; 0 on a CPU."""
        return self.largest.parallelism if self.spec.device is DeviceType.CUDA else 0

    @property
    def is_last_attempt(self) -> bool:
        """Whether the trial has crashed if this attempt's slot dies too."""
        return self.attempt >= MOST_ATTEMPTS
